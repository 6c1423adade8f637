"""The page of a comparison."""

from __future__ import annotations

import html
from functools import partial

from weightcast_lab.compare.figure import draw
from weightcast_lab.compare.summary import Quantity, Row, Summary
from weightcast_lab.compare.tables import steps_text, table_cells, tone_of, verdict
from weightcast_lab.report.page import html_table, picture, section, sheet_of_paper
from weightcast_lab.report.tables import interval_text
from weightcast_lab.results.loading import Results


def html_page(results: Results, summary: Summary) -> str:
    """One page that needs nothing else: pictures inside, no scripts, light and dark."""
    configuration = results["configuration"]
    loss = summary.quantities[0]
    facts = [
        f"{summary.seeds} seed{'s' if summary.seeds > 1 else ''}",
        f"{configuration['epochs']} epoch{'s' if configuration['epochs'] > 1 else ''}",
        f"batch size {configuration['batch size']}",
        f"learning rate {configuration['learning rate']:g}",
        f"{configuration['parameters']:,} weights",
        *dict.fromkeys(environment["hardware"] for environment in results["environments"]),
    ]
    reference = html.escape(summary.reference.label)
    cards = "".join(_card(row, loss, summary.reference) for row in summary.rows[1:])
    curves = partial(draw, results, summary.rows)
    return sheet_of_paper(
        kicker="weightcast compare",
        title=summary.title,
        facts=facts,
        body=(
            f'<div class="cards">{cards}</div>'
            f'<p class="caption">Differences to {reference} in final validation loss, paired by '
            "seed, with 95% intervals. Green or red only where the interval excludes zero.</p>"
            f'<div class="sheet">{picture("Learning curves and paired differences", curves)}</div>'
            + section("Results on the validation data", html_table(*table_cells(summary)))
            + section(
                f"Paired differences to {summary.reference.label}", _difference_table(summary)
            )
        ),
        notes=summary.notes,
        command=results.get("command", ""),
        configuration=configuration,
    )


def _card(row: Row, loss: Quantity, reference: Row) -> str:
    difference = interval_text(row.differences[loss.key], loss.decimals, sign=True)
    return (
        f'<div class="card {tone_of(row, loss)}"><h3>{html.escape(row.label)}</h3>'
        f'<p class="big">{difference}</p>'
        f"<p>final validation loss: {html.escape(verdict(row, loss, reference))}</p>"
        f"<p>steps to {html.escape(reference.label)}'s final loss: {steps_text(row)} "
        f"({html.escape(reference.label)} itself {steps_text(reference)})</p></div>"
    )


def _difference_table(summary: Summary) -> str:
    """Every quantity's paired difference."""
    columns = ["Method", *(q.name[0].upper() + q.name[1:] for q in summary.quantities)]
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
    return html_table(columns, rows)
