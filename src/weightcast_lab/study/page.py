"""The page of a study."""

from __future__ import annotations

import html
from collections.abc import Sequence

from weightcast_lab.report.page import (
    configurations_of,
    facts_of,
    html_table,
    picture,
    section,
    sheet_of_paper,
    verdict_cards,
)
from weightcast_lab.results.loading import Results
from weightcast_lab.study import tables as study_tables
from weightcast_lab.study.answers import answers
from weightcast_lab.study.figures import study_figures


def study_page(experiments: Sequence[Results]) -> str:
    """The page of a study."""
    said = "".join(f"<li>{html.escape(line)}</li>" for line in study_tables.advice(experiments))
    cards = verdict_cards(study_tables.verdicts(experiments))
    body = [f"{cards}<h2>What to set</h2><ul>{said}</ul>"]
    for figure in study_figures(experiments):
        body.append(section(figure.title, picture(figure.title, figure.draw)))
    for answer, columns, cells in study_tables.answer_tables(answers(experiments)):
        body.append(
            section(answer.question.text, html_table(columns, cells))
            + '<p class="caption">Change of the final validation loss in %, compared with '
            f"{html.escape(answer.reference)}.</p>"
        )
    for experiment in experiments:
        rows = [[(text, "") for text in row] for row in study_tables.workload_cells(experiment)]
        table = html_table(study_tables.workload_header(experiment), rows)
        body.append(
            section(experiment["workload"], table)
            + f'<p class="caption">{html.escape(experiment["title"])}</p>'
        )
    return sheet_of_paper(
        kicker="weightcast study",
        title="Where forecasting the weights helps",
        facts=facts_of(experiments, "final runs"),
        body="".join(body),
        notes=study_tables.notes_of(experiments),
        command=experiments[0]["command"],
        configuration=configurations_of(experiments, "workload"),
    )
