"""The main table of a comparison: for the terminal, Markdown and CSV."""

from __future__ import annotations

from rich.console import Group, RenderableType

from weightcast_lab.compare.summary import Quantity, Row, Summary
from weightcast_lab.report.tables import (
    NOTHING,
    Cell,
    csv_rows,
    interval_text,
    markdown_rows,
    marked,
    mean_and_width,
    number,
    terminal_notes,
    terminal_table,
    tone,
)


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


def markdown_report(summary: Summary) -> str:
    """The main table and its notes."""
    notes = "".join(f"- {note}\n" for note in summary.notes)
    return f"{markdown_table(summary)}\n{notes}"


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


def terminal_report(summary: Summary) -> RenderableType:
    """The main table with its notes."""
    table = terminal_table(summary.title, *table_cells(summary))
    return Group(table, *terminal_notes(summary.notes))


def tone_of(row: Row, quantity: Quantity) -> str:
    """What the row's paired difference is."""
    return tone(row.differences.get(quantity.key), quantity.higher_is_better)
