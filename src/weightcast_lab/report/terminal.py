"""A report for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import table as rich_table
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from weightcast_lab.report.blocks import Cards, Place, Points, Report, Table

_STYLES = {"better": "bold green", "worse": "bold red", "best": "bold", "": ""}


def terminal(report: Report) -> RenderableType:
    """Its title, its blocks and its notes."""
    return Group(Text(report.title, style="bold"), *_blocks(report), *_notes(report.notes))


def _blocks(report: Report) -> Iterator[RenderableType]:
    for block in report.shown_in(Place.TERMINAL):
        if isinstance(block, Table):
            yield _table(block)
            if block.caption:
                yield Padding(Text(block.caption, style="dim"), (0, 0, 0, 1))
        elif isinstance(block, Cards):
            for card in block.cards:
                yield Text.assemble(card.title, " ", (card.verdict, "bold"), ". ", *card.lines)
        elif isinstance(block, Points):
            yield from map(Text, block.lines)
        yield ""


def _table(block: Table) -> rich_table.Table:
    # a Text, in which [brackets] and :colons: are what they are
    title = Text(block.title, style="bold")
    table = rich_table.Table(title=title, header_style="bold")
    for place, name in enumerate(block.header[: block.narrow]):
        justify = "left" if place < block.left else "right"
        table.add_column(Text(name), justify=justify, vertical="middle")  # type: ignore[arg-type]
    for row in block.rows:
        cells = row[: block.narrow]
        table.add_row(*(Text(text, style=_STYLES[verdict]) for text, verdict in cells))
    return table


def _notes(notes: Iterable[str]) -> list[RenderableType]:
    return [Padding(Text(f"• {note}", style="dim"), (0, 0, 0, 1)) for note in notes]
