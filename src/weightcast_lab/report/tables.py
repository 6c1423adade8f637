"""The main table of a comparison: for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from weightcast_lab.errors import LabError
from weightcast_lab.files import write_atomically
from weightcast_lab.results.statistics import Interval

NOTHING = "–"


def number(value: float, decimals: int, *, sign: bool = False) -> str:
    """The number with a true minus sign."""
    return f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", "−")


def interval_text(interval: Interval | None, decimals: int, *, sign: bool = False) -> str:
    """`0.0321 ± 0.0051`; the sign and its number stay on one line."""
    if interval is None:
        return NOTHING
    text = number(interval.mean, decimals, sign=sign)
    if interval.half_width is None:
        return text
    return f"{text} ±\N{NO-BREAK SPACE}{number(interval.half_width, decimals)}"


Cell = tuple[str, str]
"""A text, and `better`, `worse`, `best` or nothing."""


def marked(rows: Iterable[Iterable[Cell]]) -> list[list[str]]:
    """In Markdown: bold is what is better, worse or best."""
    return [[f"**{text}**" if verdict else text for text, verdict in row] for row in rows]


def markdown_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, its first column to the left and the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    whole = [[cell.replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in whole)


def fill_document(document: Path, name: str, filling: str) -> None:
    """Replace what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.

    Raises:
        LabError: the document cannot be read or written, or lacks the two lines.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    try:
        text = document.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"{document} cannot be read: {error}.") from None
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise LabError(f"{document} lacks the lines {begin.strip()!r} and {end!r} to fill.")
    write_atomically(document, (before + begin + filling + end + after).encode())


def csv_rows(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in CSV; None is an empty cell."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue()


def mean_and_width(interval: Interval | None) -> tuple[float | None, float | None]:
    """Two cells of CSV."""
    return (None, None) if interval is None else (interval.mean, interval.half_width)


_STYLES = {"better": "bold green", "worse": "bold red", "best": "bold", "": ""}


def terminal_table(
    title: str, header: Iterable[str], rows: Iterable[Iterable[Cell]], left: int = 1
) -> Table:
    """A table for the terminal, so many columns to the left and the others to the right."""
    # a Text, in which [brackets] and :colons: are what they are
    table = Table(title=Text(title, style="bold"), header_style="bold")
    for place, name in enumerate(header):
        table.add_column(Text(name), justify="left" if place < left else "right", vertical="middle")
    for row in rows:
        table.add_row(*(Text(text, style=_STYLES[verdict]) for text, verdict in row))
    return table


def problem_notes(where: str, problems: Mapping[str, str]) -> list[str]:
    """What is wrong with methods, by their labels: those with the same problem in one note."""
    notes = []
    for problem in filter(None, dict.fromkeys(problems.values())):
        labels = [label for label, own in problems.items() if own == problem]
        whose = "all methods" if len(labels) == len(problems) else ", ".join(labels)
        notes.append(f"{where}: {whose}: {problem}.")
    return notes


def terminal_notes(notes: Iterable[str]) -> list[RenderableType]:
    """Notes below a table."""
    return [Padding(Text(f"• {note}", style="dim"), (0, 0, 0, 1)) for note in notes]


def tone(difference: Interval | None, higher_is_better: bool) -> str:
    """`better` or `worse` if the paired interval excludes zero, else empty."""
    if difference is None or not difference.excludes_zero:
        return ""
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def shown(value: object) -> str:
    """A value of a configuration, for people."""
    if isinstance(value, list | tuple):
        return " and ".join(map(shown, value)) or "none"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return "none" if value is None else str(value)
