"""The main table of a comparison: for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from weightcast_lab.errors import LabError
from weightcast_lab.files import write_atomically
from weightcast_lab.results.loading import Quantity, Row, Summary
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


def steps_text(row: Row) -> str:
    """`0.81`, and how many runs never got there."""
    if row.compared == 0:
        return NOTHING
    if row.steps_ratio is None:
        return f"not reached ({row.not_reached} of {row.compared})"
    some = f" ({row.not_reached} of {row.compared} never)" if row.not_reached else ""
    return number(row.steps_ratio, 2) + some


def verdict(row: Row, quantity: Quantity, reference: Row) -> str:
    """What the paired difference says, claiming nothing while its interval contains zero."""
    difference, other = row.differences[quantity.key], reference.label
    if difference is None:
        return f"no pair of finished runs to compare with {other}"
    if difference.half_width is None:
        return f"one seed shows no difference to {other}, whatever the numbers"
    found = tone_of(row, quantity)
    return f"{found} than {other}" if found else f"no difference to {other} shown"


Cell = tuple[str, str]
"""A text, and `better`, `worse`, `best` or nothing."""


def table_cells(summary: Summary) -> tuple[list[str], list[list[Cell]]]:
    """The header and the rows of the main table."""
    reference = summary.reference.label
    header = [
        "Method",
        *(quantity.name[0].upper() + quantity.name[1:] for quantity in summary.quantities),
        f"Final loss, paired difference to {reference}",
        f"Steps to {reference}'s final loss",
        "Seconds per run",
    ]
    loss = summary.quantities[0]
    rows: list[list[Cell]] = []
    for row in summary.rows:
        problems = row.problems()
        difference = interval_text(row.differences.get(loss.key), loss.decimals, sign=True)
        rows.append(
            [
                (row.label + (f" ({problems})" if problems else ""), ""),
                *((interval_text(row.values[q.key], q.decimals), "") for q in summary.quantities),
                (difference, tone_of(row, loss)),
                (steps_text(row), ""),
                (NOTHING if row.seconds is None else number(row.seconds, 1), ""),
            ]
        )
    return header, rows


def markdown_table(summary: Summary) -> str:
    """The main table in Markdown; differences whose interval excludes zero are bold."""
    header, rows = table_cells(summary)
    return markdown_rows(header, marked(rows))


def marked(rows: Iterable[Iterable[Cell]]) -> list[list[str]]:
    """In Markdown: bold is what is better, worse or best."""
    return [[f"**{text}**" if verdict else text for text, verdict in row] for row in rows]


def markdown_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, its first column to the left and the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    whole = [[cell.replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in whole)


def markdown_report(summary: Summary) -> str:
    """The main table and its notes."""
    notes = "".join(f"- {note}\n" for note in summary.notes)
    return f"{markdown_table(summary)}\n{notes}"


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


def csv_table(summary: Summary) -> str:
    """One line per method, numbers in full."""
    quantities, parts = summary.quantities, ("mean", "half width")
    header = [
        *("method", "finished", "diverged", "missing"),
        *(f"{q.name} {part}" for q in quantities for part in parts),
        *(f"{q.name} difference {part}" for q in quantities for part in parts),
        *("steps ratio", "target not reached", "seconds"),
    ]
    rows = []
    for row in summary.rows:
        both = [source.get(q.key) for source in (row.values, row.differences) for q in quantities]
        rows.append(
            [
                *(row.label, row.finished, len(row.diverged), row.missing),
                *(cell for interval in both for cell in mean_and_width(interval)),
                *(row.steps_ratio, row.not_reached, row.seconds),
            ]
        )
    return csv_rows(header, rows)


_STYLES = {"better": "bold green", "worse": "bold red", "best": "bold", "": ""}


def terminal_report(summary: Summary) -> RenderableType:
    """The main table with its notes."""
    table = terminal_table(summary.title, *table_cells(summary))
    return Group(table, *terminal_notes(summary.notes))


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


def tone_of(row: Row, quantity: Quantity) -> str:
    """What the row's paired difference is."""
    return tone(row.differences.get(quantity.key), quantity.higher_is_better)


def tone(difference: Interval | None, higher_is_better: bool) -> str:
    """`better` or `worse` if the paired interval excludes zero, else empty."""
    if difference is None or not difference.excludes_zero:
        return ""
    return "better" if (difference.mean > 0) == higher_is_better else "worse"
