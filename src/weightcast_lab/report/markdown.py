"""A report in Markdown, and documents with blocks that a program fills."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from weightcast_lab.errors import LabError
from weightcast_lab.files import write_atomically
from weightcast_lab.report.blocks import Block, Cards, Cell, Figure, Place, Points, Report


def markdown(report: Report, *, notes: bool = True) -> str:
    """All its blocks, then its notes; without them a report of one table is that table alone."""
    if report.is_one_table and not notes:
        return _block(report.shown_in(Place.MARKDOWN)[0], is_alone=True)
    parts = [_block(b, is_alone=report.is_one_table) for b in report.shown_in(Place.MARKDOWN)]
    return "\n".join([*parts, points(report.notes)])


def _block(block: Block, *, is_alone: bool) -> str:
    if isinstance(block, Figure):
        return ""
    heading = "" if is_alone or not block.title else f"**{block.title}**"
    if isinstance(block, Points):
        return f"{heading}\n\n{points(block.lines)}"
    if isinstance(block, Cards):
        return f"{heading}\n\n" + "".join(
            f"- {card.title} **{card.verdict}**. {' '.join(card.lines)}\n" for card in block.cards
        )
    rows = [[text for text, _ in row] for row in block.rows]
    table = markdown_rows(block.header, rows if block.is_detail else marked(block.rows))
    above = " ".join(filter(None, (heading, block.lead)))
    below = f"\n{block.caption}\n" if block.caption else ""
    return (f"{above}\n\n" if above else "") + table + below


def points(lines: Iterable[str]) -> str:
    """A list."""
    return "".join(f"- {line}\n" for line in lines)


def marked(rows: Iterable[Iterable[Cell]]) -> list[list[str]]:
    """Bold is what is better, worse or best."""
    return [[f"**{text}**" if verdict else text for text, verdict in row] for row in rows]


def markdown_rows(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table in Markdown, so many columns to the left and the others to the right."""
    lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    whole = [[cell.replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in whole)


def filled(text: str, name: str, filling: str) -> str:
    """The text with `filling` between `<!-- begin NAME -->` and `<!-- end NAME -->`.

    Raises:
        LabError: it lacks the two lines.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise LabError(f"the lines {begin.strip()!r} and {end!r} to fill")
    return before + begin + filling + end + after


def fill_document(document: Path, name: str, filling: str) -> None:
    """Replace what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.

    Raises:
        LabError: the document cannot be read or written, or lacks the two lines.
    """
    try:
        text = filled(document.read_text("utf-8"), name, filling)
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"{document} cannot be read: {error}.") from None
    except LabError as missing:
        raise LabError(f"{document} lacks {missing}.") from None
    write_atomically(document, text.encode())
