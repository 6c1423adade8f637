"""One self-contained page: pictures inside, no scripts, light and dark, wide and narrow."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from string import Template
from typing import Any

from matplotlib.figure import Figure

from weightcast_lab.paper.claims import claims
from weightcast_lab.paper.comparison import comparisons, shown
from weightcast_lab.paper.comparison import figures as paper_figures
from weightcast_lab.paper.tables import difference_rows, header, notes_of, table_rows
from weightcast_lab.report.drawing import (
    DARK,
    LIGHT,
    Theme,
    draw,
    draw_ahead,
    draw_delays,
    draw_forest,
    draw_panels,
    draw_rates,
    to_image,
)
from weightcast_lab.report.tables import (
    Cell,
    interval_text,
    steps_text,
    table_cells,
    tone,
    tone_of,
    verdict,
)
from weightcast_lab.results.loading import Quantity, Results, Row, Summary
from weightcast_lab.study import tables as study_tables
from weightcast_lab.study.answers import (
    answers,
    asked,
    begun,
    heaviest,
    versus_plain,
)
from weightcast_lab.study.brief import IN_BRIEF
from weightcast_lab.study.pairs import final_losses, series_of
from weightcast_lab.study.studies import AGAINST_DELAY, METHODS


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
            + _section("Results on the validation data", _table(*table_cells(summary)))
            + _section(
                f"Paired differences to {summary.reference.label}", _difference_table(summary)
            )
        ),
        notes=summary.notes,
        command=results.get("command", ""),
        configuration=configuration,
    )


def paper_page(experiments: Sequence[Results]) -> str:
    """The page of a reproduction."""
    body = [_verdicts((claim.claim, claim.verdict, claim.reason) for claim in claims(experiments))]
    for table in comparisons(experiments):
        differences = []
        for entries, (label, *texts) in zip(
            table.rows.values(), difference_rows(table), strict=True
        ):
            tones = [tone(e.difference, table.higher_is_better) for e in entries[1:]]
            differences.append([(label, ""), *zip(texts, tones, strict=True)])
        body.append(
            _section(table.title, _table(header(), table_rows(table)))
            + f'<p class="caption">{html.escape(table.caption)}</p>'
            '<div class="sheet"><details><summary>Paired differences to AdamW</summary>'
            f"{_table(['Network', *header()[2:]], differences)}</details></div>"
        )
    for figure in paper_figures(experiments):
        drawn = partial(draw_panels, figure.experiments, figure.column)
        body.append(_section(figure.title, picture(figure.title, drawn)))
    return sheet_of_paper(
        kicker="weightcast reproduce",
        title="Weight Prediction Boosts the Convergence of AdamW: the paper beside our runs",
        facts=_facts_of(experiments, "runs"),
        body="".join(body),
        notes=notes_of(experiments),
        command=experiments[0]["command"],
        configuration=_configurations(experiments, "title"),
    )


def study_page(experiments: Sequence[Results]) -> str:
    """The page of a study."""
    said = "".join(f"<li>{html.escape(line)}</li>" for line in study_tables.advice(experiments))
    cards = _verdicts(study_tables.verdicts(experiments))
    body = [f"{cards}<h2>What to set</h2><ul>{said}</ul>"]
    for figure in study_figures(experiments):
        body.append(_section(figure.title, picture(figure.title, figure.draw)))
    for answer, columns, cells in study_tables.answer_tables(answers(experiments)):
        body.append(
            _section(answer.question.text, _table(columns, cells))
            + '<p class="caption">Change of the final validation loss in %, compared with '
            f"{html.escape(answer.reference)}.</p>"
        )
    for experiment in experiments:
        rows = [[(text, "") for text in row] for row in study_tables.workload_cells(experiment)]
        table = _table(study_tables.workload_header(experiment), rows)
        body.append(
            _section(experiment["workload"], table)
            + f'<p class="caption">{html.escape(experiment["title"])}</p>'
        )
    return sheet_of_paper(
        kicker="weightcast study",
        title="Where forecasting the weights helps",
        facts=_facts_of(experiments, "final runs"),
        body="".join(body),
        notes=study_tables.notes_of(experiments),
        command=experiments[0]["command"],
        configuration=_configurations(experiments, "workload"),
    )


def _facts_of(experiments: Sequence[Results], what: str) -> list[str]:
    """How many runs, on which machines."""
    hardware = dict.fromkeys(e["hardware"] for x in experiments for e in x["environments"])
    return [f"{sum(len(e['runs']) for e in experiments)} {what}", *hardware]


def _configurations(experiments: Sequence[Results], name: str) -> dict[str, str]:
    """Each experiment's configuration in a line, by its name."""
    return {
        e[name]: ", ".join(f"{key} {shown(value)}" for key, value in e["configuration"].items())
        for e in experiments
    }


@dataclass(frozen=True)
class StudyFigure:
    """A figure of a study: `draw(theme, columns)` makes it."""

    key: str
    title: str
    draw: Callable[[Theme, int], Figure]


IN_CURVES = ("adamw", "adamw-s1", "adamw-s3", "adamw-s8", "nadamw")


def study_figures(experiments: Sequence[Results]) -> list[StudyFigure]:
    """Learning curves, learning rates, delays, what s does, and the intervals of questions."""
    figures = []
    with_curves = [
        e | {"methods": [m for name in IN_CURVES for m in e["methods"] if m["name"] == name]}
        for e in experiments
        if not (e["variant_of"] or series_of(e))
    ]
    if with_curves := [e for e in with_curves if e["methods"]]:
        draw_curves = partial(draw_panels, with_curves, "validation_loss", by_epoch=False)
        title = "Validation loss against steps, each method at its own learning rate"
        figures.append(StudyFigure("curves", title, draw_curves))
        title = "Final loss against the learning rate, in the search"
        figures.append(StudyFigure("rates", title, partial(draw_rates, with_curves)))
    for key, whose, names in AGAINST_DELAY:
        late = [e for e in experiments if series_of(e)]
        ahead = [name for name in names if METHODS[name].in_delays]
        if any(final_losses(e, name) for e in late for name in ahead):
            title = f"Final loss against the delay of the gradients: {whose}"
            figures.append(StudyFigure(key, title, partial(draw_delays, late, names)))
    found = begun(answers(experiments))
    left_out = heaviest(found)
    if any(answer.question.key == "adamw" for answer in found):
        title = "Final loss against the steps predicted ahead"
        figures.append(StudyFigure("ahead", title, partial(draw_ahead, found)))
    for key, title, against, chosen in (
        ("forest-adamw", "AdamW predicted, and NAdamW", "AdamW", asked(found, *IN_BRIEF)),
        ("forest-nadamw", "AdamW predicted, beside NAdamW", "NAdamW", asked(found, "nadamw")),
        ("forest-plain", "Other optimizers predicted", "the plain form", versus_plain(found)),
        ("forest-others", "Other optimizers, plain", "AdamW", asked(found, "others")),
        ("forest-variants", "Other β₁, β₂ and batch size", "AdamW", asked(found, "variants")),
    ):
        if chosen:
            rest = left_out.get(chosen[0].tasks)
            figures.append(StudyFigure(key, title, partial(draw_forest, chosen, against, rest)))
    for answer in found:
        if answer.question.key.startswith("delay-nadamw-"):
            title, against = f"D = {answer.question.delay}: AdamW predicted", answer.reference
            draw_one = partial(draw_forest, [answer], against, left_out.get(answer.tasks))
            figures.append(StudyFigure(f"forest-{answer.question.key}", title, draw_one))
    return figures


def sheet_of_paper(
    *,
    kicker: str,
    title: str,
    facts: Iterable[str],
    body: str,
    notes: Iterable[str],
    command: str,
    configuration: Mapping[str, Any],
) -> str:
    """The page around its `body`, which is HTML; all else is text."""
    return Template(files(__package__).joinpath("page.html").read_text("utf-8")).substitute(
        kicker=html.escape(kicker),
        title=html.escape(title),
        facts=" · ".join(map(html.escape, facts)),
        body=body,
        notes="".join(f"<li>{html.escape(note)}</li>" for note in notes),
        command=html.escape(command),
        configuration="".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in configuration.items()
        ),
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


def picture(description: str, draw_figure: Callable[[Theme, int], Figure]) -> str:
    """A figure in one and in two columns, light and dark; the browser takes one."""

    def address(theme: Theme, columns: int) -> str:
        image = to_image(draw_figure(theme, columns), "svg")
        return "data:image/svg+xml;base64," + base64.b64encode(image).decode()

    narrow, dark = "(max-width: 700px)", "(prefers-color-scheme: dark)"
    return (
        f'<picture><source media="{narrow} and {dark}" srcset="{address(DARK, 1)}">'
        f'<source media="{narrow}" srcset="{address(LIGHT, 1)}">'
        f'<source media="{dark}" srcset="{address(DARK, 2)}">'
        f'<img alt="{html.escape(description)}" src="{address(LIGHT, 2)}"></picture>'
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
    return _table(columns, rows)


def _table(columns: Iterable[str], rows: Iterable[Sequence[Cell]]) -> str:
    """It scrolls inside where it is too wide; a cell is its text and its class, if it has one."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = ""
    for (label, _), *cells in rows:
        body += f"<tr><th>{html.escape(label)}</th>"
        for text, kind in cells:
            body += f'<td class="{kind}">{html.escape(text).replace(" ±", "&nbsp;±")}</td>'
        body += "</tr>"
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _section(title: str, content: str) -> str:
    """A heading with a table or a picture below it."""
    return f'<h2>{html.escape(title)}</h2><div class="sheet">{content}</div>'


def _verdicts(found: Iterable[tuple[str, str, str]]) -> str:
    """A card for each question or claim, with its verdict, and why."""
    cards = "".join(
        f'<div class="card"><h3>{html.escape(question)}</h3>'
        f'<p class="verdict">{html.escape(verdict)}</p><p>{html.escape(reason)}</p></div>'
        for question, verdict, reason in found
    )
    return f'<div class="cards">{cards}</div>'
