"""The page of a reproduction."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import partial

from weightcast_lab.paper.claims import claims
from weightcast_lab.paper.comparison import comparisons
from weightcast_lab.paper.comparison import figures as paper_figures
from weightcast_lab.paper.tables import difference_rows, header, notes_of, table_rows
from weightcast_lab.report.drawing import draw_panels
from weightcast_lab.report.page import (
    configurations_of,
    facts_of,
    html_table,
    picture,
    section,
    sheet_of_paper,
    verdict_cards,
)
from weightcast_lab.report.tables import tone
from weightcast_lab.results.loading import Results


def paper_page(experiments: Sequence[Results]) -> str:
    """The page of a reproduction."""
    body = [
        verdict_cards((claim.claim, claim.verdict, claim.reason) for claim in claims(experiments))
    ]
    for table in comparisons(experiments):
        differences = []
        for entries, (label, *texts) in zip(
            table.rows.values(), difference_rows(table), strict=True
        ):
            tones = [tone(e.difference, table.higher_is_better) for e in entries[1:]]
            differences.append([(label, ""), *zip(texts, tones, strict=True)])
        body.append(
            section(table.title, html_table(header(), table_rows(table)))
            + f'<p class="caption">{html.escape(table.caption)}</p>'
            '<div class="sheet"><details><summary>Paired differences to AdamW</summary>'
            f"{html_table(['Network', *header()[2:]], differences)}</details></div>"
        )
    for figure in paper_figures(experiments):
        drawn = partial(draw_panels, figure.labelled, figure.column)
        body.append(section(figure.title, picture(figure.title, drawn)))
    return sheet_of_paper(
        kicker="weightcast reproduce",
        title="Weight Prediction Boosts the Convergence of AdamW: the paper beside our runs",
        facts=facts_of(experiments, "runs"),
        body="".join(body),
        notes=notes_of(experiments),
        command=experiments[0]["command"],
        configuration=configurations_of(experiments, "title"),
    )
