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

from weightcast_lab import study_tables
from weightcast_lab.claims import claims
from weightcast_lab.evidence import answers, asked, begun, series_of, versus_plain
from weightcast_lab.figures import (
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
from weightcast_lab.paper import comparisons, shown
from weightcast_lab.paper import figures as paper_figures
from weightcast_lab.paper_tables import cell_text, difference_rows, header, notes_of
from weightcast_lab.protocol import RECIPES
from weightcast_lab.results import Quantity, Results, Row, Summary
from weightcast_lab.study import AGAINST_DELAY
from weightcast_lab.tables import interval_text, steps_text, table_cells, tone_of, verdict


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
    columns, rows = table_cells(summary)
    tones = [tone_of(row, loss) for row in summary.rows]
    reference = html.escape(summary.reference.label)
    table = _html_table(columns, rows, tones, column=1 + len(summary.quantities))
    cards = "".join(_card(row, loss, summary.reference) for row in summary.rows[1:])
    return sheet_of_paper(
        kicker="weightcast compare",
        title=summary.title,
        facts=facts,
        body=(
            f'<div class="cards">{cards}</div>'
            f'<p class="caption">Differences to {reference} in final validation loss, paired by '
            "seed, with 95% intervals. Green or red only where the interval excludes zero.</p>"
            f'<div class="sheet">{_figures(results, summary)}</div>'
            f'<h2>Results on the validation data</h2><div class="sheet">{table}</div>'
            f"<h2>Paired differences to {reference}</h2>"
            f'<div class="sheet">{_difference_table(summary)}</div>'
        ),
        notes=summary.notes,
        command=results.get("command", ""),
        configuration=configuration,
    )


def paper_page(experiments: Sequence[Results]) -> str:
    """The page of a reproduction."""
    cards = "".join(
        f'<div class="card"><h3>{html.escape(claim.claim)}</h3>'
        f'<p class="verdict">{html.escape(claim.verdict)}</p>'
        f"<p>{html.escape(claim.reason)}</p></div>"
        for claim in claims(experiments)
    )
    body = [f'<div class="cards">{cards}</div>']
    for table in comparisons(experiments):
        rows = []
        for network, entries in table.rows.items():
            cells = [f"<th>{html.escape(RECIPES[network].label)}</th>"]
            for entry in entries:
                text = html.escape(cell_text(entry, table.decimals))
                text = text.replace(" ±", "&nbsp;±")
                cells.append(f"<td>{f'<b>{text}</b>' if entry.is_best else text}</td>")
            rows.append(f"<tr>{''.join(cells)}</tr>")
        differences = []
        for (network, entries), texts in zip(
            table.rows.items(), difference_rows(table), strict=True
        ):
            cells = [f"<th>{html.escape(RECIPES[network].label)}</th>"]
            for entry, text in zip(entries[1:], texts[1:], strict=True):
                better = entry.difference is not None and (
                    (entry.difference.mean > 0) == table.higher_is_better
                )
                sure = entry.difference is not None and entry.difference.excludes_zero
                cells.append(_html_cell(text, ("better" if better else "worse") if sure else ""))
            differences.append(f"<tr>{''.join(cells)}</tr>")
        body.append(
            f"<h2>{html.escape(table.title)}</h2>"
            f'<div class="sheet">{html_frame(header(), rows)}</div>'
            f'<p class="caption">{html.escape(table.caption)}</p>'
            f'<div class="sheet"><details><summary>Paired differences to AdamW</summary>'
            f"{html_frame(['Network', *header()[2:]], differences)}</details></div>"
        )
    for figure in paper_figures(experiments):
        drawn = picture(figure.title, partial(draw_panels, figure.experiments, figure.column))
        body.append(f'<h2>{html.escape(figure.title)}</h2><div class="sheet">{drawn}</div>')
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
    found = answers(experiments)
    cards = "".join(
        f'<div class="card"><h3>{html.escape(question)}</h3>'
        f'<p class="verdict">{html.escape(verdict)}</p><p>{html.escape(reason)}</p></div>'
        for question, verdict, reason in study_tables.verdicts(experiments)
    )
    said = "".join(f"<li>{html.escape(line)}</li>" for line in study_tables.advice(experiments))
    body = [f'<div class="cards">{cards}</div><h2>What to set</h2><ul>{said}</ul>']
    for figure in study_figures(experiments):
        drawn = picture(figure.title, figure.draw)
        body.append(f'<h2>{html.escape(figure.title)}</h2><div class="sheet">{drawn}</div>')
    for answer in begun(found):
        rows = []
        for (label, _), *cells in study_tables.answer_cells(answer):
            tags = [f"<th>{html.escape(label)}</th>"]
            tags += [_html_cell(text, tone) for text, tone in cells]
            rows.append(f"<tr>{''.join(tags)}</tr>")
        table = html_frame(study_tables.answer_header(answer), rows)
        body.append(f'<h2>{html.escape(answer.question.text)}</h2><div class="sheet">{table}</div>')
        body.append(
            '<p class="caption">Change of the final validation loss in %, compared with '
            f"{html.escape(answer.reference)}.</p>"
        )
    for experiment in experiments:
        cells_of = study_tables.workload_cells(experiment)
        table = _html_table(
            study_tables.workload_header(experiment), cells_of, [""] * len(cells_of), column=0
        )
        body.append(
            f'<h2>{html.escape(experiment["workload"])}</h2><div class="sheet">{table}</div>'
            f'<p class="caption">{html.escape(experiment["title"])}</p>'
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


IN_FOREST = ("adamw", "control", "look-ahead")
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
        if any(wanted["name"] in names for e in late for wanted in e["wanted"]):
            title = f"Final loss against the delay of the gradients: {whose}"
            figures.append(StudyFigure(key, title, partial(draw_delays, late, names)))
    found = begun(answers(experiments))
    if any(answer.question.key == "adamw" for answer in found):
        title = "Final loss against the steps predicted ahead"
        figures.append(StudyFigure("ahead", title, partial(draw_ahead, found)))
    for key, title, against, chosen in (
        ("forest-adamw", "AdamW predicted, and NAdamW", "AdamW", asked(found, *IN_FOREST)),
        ("forest-nadamw", "AdamW predicted, beside NAdamW", "NAdamW", asked(found, "nadamw")),
        ("forest-plain", "Other optimizers predicted", "the plain form", versus_plain(found)),
        ("forest-others", "Other optimizers, plain", "AdamW", asked(found, "others")),
        ("forest-variants", "Other β₁, β₂ and batch size", "AdamW", asked(found, "variants")),
    ):
        if chosen:
            figures.append(StudyFigure(key, title, partial(draw_forest, chosen, against)))
    for answer in found:
        if answer.question.key.startswith("delay-nadamw-"):
            title, against = f"D = {answer.question.delay}: AdamW predicted", answer.reference
            draw_one = partial(draw_forest, [answer], against)
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


def _figures(results: Results, summary: Summary) -> str:
    """The picture of the comparison."""
    return picture(
        "Learning curves and paired differences",
        lambda theme, columns: draw(results, summary.rows, theme, columns=columns),
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
    body = []
    for row in summary.rows[1:]:
        cells = [f"<th>{html.escape(row.label)}</th>"]
        for quantity in summary.quantities:
            text = interval_text(row.differences[quantity.key], quantity.decimals, sign=True)
            cells.append(_html_cell(text, tone_of(row, quantity)))
        body.append(f"<tr>{''.join(cells)}</tr>")
    return html_frame(columns, body)


def _html_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], tones: Sequence[str], column: int
) -> str:
    body = []
    for cells, tone in zip(rows, tones, strict=True):
        tags = [f"<th>{html.escape(cells[0])}</th>"]
        for position, cell in enumerate(cells[1:], start=1):
            shade = tone if position == column else ""
            tags.append(_html_cell(cell, shade))
        body.append(f"<tr>{''.join(tags)}</tr>")
    return html_frame(columns, body)


def _html_cell(text: str, tone: str) -> str:
    return f'<td class="{tone}">{html.escape(text).replace(" ±", "&nbsp;±")}</td>'


def html_frame(columns: Iterable[str], body: Iterable[str]) -> str:
    """A table that scrolls inside where it is too wide; the body's rows are HTML."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
