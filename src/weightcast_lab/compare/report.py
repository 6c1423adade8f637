"""What a comparison shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from weightcast_lab.compare.figure import draw
from weightcast_lab.compare.summary import Quantity, Row, Summary, summarize
from weightcast_lab.report.blocks import Card, Cards, Cell, Figure, Place, Report, Table
from weightcast_lab.report.tables import (
    NOTHING,
    csv_rows,
    interval_text,
    mean_and_width,
    number,
    tone,
)
from weightcast_lab.results.loading import Results


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


def _main_table(summary: Summary) -> Table:
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
    return Table("Results on the validation data", header, rows)


def _difference_table(summary: Summary) -> Table:
    """Every quantity's paired difference."""
    header = ["Method", *(q.name[0].upper() + q.name[1:] for q in summary.quantities)]
    rows = [
        [
            (row.label, ""),
            *(
                (interval_text(row.differences[q.key], q.decimals, sign=True), tone_of(row, q))
                for q in summary.quantities
            ),
        ]
        for row in summary.rows[1:]
    ]
    title = f"Paired differences to {summary.reference.label}"
    return Table(title, header, rows, places=Place.PAGE)


def _cards(summary: Summary) -> Cards:
    """What each method came to beside the reference."""
    loss, reference = summary.quantities[0], summary.reference
    cards = [
        Card(
            row.label,
            interval_text(row.differences[loss.key], loss.decimals, sign=True),
            (
                f"final validation loss: {verdict(row, loss, reference)}",
                f"steps to {reference.label}'s final loss: {steps_text(row)} "
                f"({reference.label} itself {steps_text(reference)})",
            ),
            tone_of(row, loss),
        )
        for row in summary.rows[1:]
    ]
    caption = (
        f"Differences to {reference.label} in final validation loss, paired by seed, with 95% "
        "intervals. Green or red only where the interval excludes zero."
    )
    return Cards("", cards, caption, places=Place.PAGE)


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


def tone_of(row: Row, quantity: Quantity) -> str:
    """What the row's paired difference is."""
    return tone(row.differences.get(quantity.key), quantity.higher_is_better)


def report(experiments: Sequence[Results]) -> Report:
    """All that there is to show of a comparison."""
    (results,) = experiments
    summary = summarize(results)
    configuration = results["configuration"]
    facts = [
        f"{summary.seeds} seed{'s' if summary.seeds > 1 else ''}",
        f"{configuration['epochs']} epoch{'s' if configuration['epochs'] > 1 else ''}",
        f"batch size {configuration['batch size']}",
        f"learning rate {configuration['learning rate']:g}",
        f"{configuration['parameters']:,} weights",
        *dict.fromkeys(environment["hardware"] for environment in results["environments"]),
    ]
    curves = partial(draw, results, summary.rows)
    return Report(
        command="compare",
        title=summary.title,
        facts=facts,
        blocks=[
            _cards(summary),
            Figure("curves", "Learning curves and paired differences", curves),
            _main_table(summary),
            _difference_table(summary),
        ],
        notes=summary.notes,
        repeat=results["command"],
        configuration=configuration,
        files={"table.csv": csv_table(summary)},
    )
