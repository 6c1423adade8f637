"""The tables of a study: for the terminal, Markdown and CSV."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from weightcast_lab.evidence import (
    MISSING,
    QUANTITIES,
    Answer,
    AnswerRow,
    Effect,
    WorkloadRow,
    answers,
    asked,
    begun,
    problem_of,
    recommendations,
    series_of,
    workload_rows,
)
from weightcast_lab.results import LOSS_DECIMALS, Results, computed_on
from weightcast_lab.statistics import Interval, MedianInterval
from weightcast_lab.study import AT_EVERY_DELAY, DELAYS
from weightcast_lab.tables import (
    NOTHING,
    Cell,
    csv_rows,
    interval_text,
    markdown_rows,
    marked,
    mean_and_width,
    number,
    problem_notes,
    terminal_notes,
    terminal_table,
)

PERCENT_DECIMALS = 1


def in_percent(logarithm: float) -> float:
    """A change of a logarithm as a change in per cent."""
    return 100 * math.expm1(logarithm)


def change_text(change: Interval | None) -> str:
    """`−2.1 [−2.6, −1.6]`, in per cent."""
    if change is None:
        return NOTHING
    mean, width = change.mean, change.half_width
    text = number(in_percent(mean), PERCENT_DECIMALS, sign=True)
    if width is None:
        return text
    low, high = (
        number(in_percent(x), PERCENT_DECIMALS, sign=True) for x in (mean - width, mean + width)
    )
    return f"{text} [{low}, {high}]"


def effect_text(effect: Effect) -> str:
    """The change, and which runs are not in it."""
    if effect.change is None:
        return effect.problem or NOTHING
    problem = f" ({effect.problem})" if effect.problem else ""
    return change_text(effect.change) + problem


def overall_text(row: AnswerRow) -> str:
    """The mean over the workloads with its corrected p value, and of how many if not of all."""
    if row.overall.p is None:
        return change_text(row.overall.change)
    measured = sum(effect.p is not None for effect in row.effects)
    some = "" if measured == len(row.effects) else f" (of {measured})"
    return f"{change_text(row.overall.change)}, p {p_text(row.overall.p)}{some}"


def counts(row: AnswerRow) -> str:
    """On how many workloads it is better / worse."""
    found = [effect.verdict for effect in row.effects]
    return f"{found.count('better')} / {found.count('worse')}"


def p_text(p: float) -> str:
    """`= 0.031`, with two significant digits, down to 0.0001."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}" if p < 0.1 else f"= {p:.2f}"


def median_text(found: MedianInterval | None) -> str:
    """`0.81 [0.70, never]`."""
    if found is None:
        return NOTHING
    median, low, high = (
        "never" if value is None else number(value, 2)
        for value in (found.median, found.low, found.high)
    )
    return median if low == median == high else f"{median} [{low}, {high}]"


def rate_text(row: WorkloadRow) -> str:
    """The learning rate; at an edge of its grid it is marked."""
    if row.learning_rate is None:
        return NOTHING
    mark = {"lowest": " ↓", "highest": " ↑"}.get(row.edge, "")
    return f"{row.learning_rate:g}{mark}"


def answer_header(answer: Answer) -> list[str]:
    """Of a question's table."""
    several = len(answer.workloads) > 1
    return ["Method", *answer.workloads, *(["Mean"] if several else [])]


def answer_cells(answer: Answer) -> list[list[Cell]]:
    """Text and verdict of every cell of a question's table, the method's label first."""
    several = len(answer.workloads) > 1
    return [
        [
            (row.label, ""),
            *((effect_text(effect), effect.verdict) for effect in row.effects),
            *([(overall_text(row), row.overall.verdict)] if several else []),
        ]
        for row in answer.begun
    ]


def workload_header(experiment: Results) -> list[str]:
    """Of a workload's table."""
    metric = experiment["metric"]
    best = "Highest" if metric["higher_is_better"] else "Lowest"
    return [
        *("Method", "Learning rate", "Final loss", "Lowest loss"),
        *(f"Final {metric['name']}", f"{best} {metric['name']}"),
        *("Steps to AdamW's final loss", "Hours to it", "Cost of a step", "Memory"),
    ]


def workload_cells(experiment: Results) -> list[list[str]]:
    """The rows of a workload's table."""
    decimals = {
        "final loss": LOSS_DECIMALS,
        "best loss": LOSS_DECIMALS,
        "final metric": experiment["metric"]["decimals"],
        "best metric": experiment["metric"]["decimals"],
    }
    return [
        [
            row.label + (f" ({row.problem})" if row.problem else ""),
            rate_text(row),
            *(interval_text(row.values[q], decimals[q]) for q in QUANTITIES),
            median_text(row.steps),
            median_text(row.hours),
            NOTHING if row.cost is None else number(row.cost, 2),
            NOTHING if row.memory is None else number(row.memory, 2),
        ]
        for row in workload_rows(experiment)
        if row.problem != MISSING
    ]


def verdicts(experiments: Sequence[Results]) -> list[tuple[str, str, str]]:
    """Every question with its verdict, and why."""
    return [(a.question.text, a.verdict, a.reason) for a in answers(experiments)]


def advice(experiments: Sequence[Results]) -> list[str]:
    """What a user should set."""
    return recommendations(answers(experiments), lambda change: f"{change_text(change)} %")


def notes_of(experiments: Sequence[Results]) -> list[str]:
    """What a reader must know to judge the numbers."""
    seeds = sorted({len(e["seeds"]) for e in experiments})
    search = " and ".join(map(str, sorted({n for e in experiments for n in e["search"]["seeds"]})))
    n = " to ".join(f"{count}" for count in dict.fromkeys((seeds[0], seeds[-1])))
    notes = [
        "Changes are of the final validation loss in per cent, paired by seed (same initial "
        f"weights, same batches), with 95% t intervals; {n} seeds. Bold is better or worse at 5% "
        "after Holm's correction over the whole table (the means: over the methods). The mean is "
        "over these workloads and speaks of no others; what to set names the lowest of several "
        "means, and picking the lowest flatters.",
        "Every method has a learning rate of its own, the best of those tried in runs of their own "
        f"(seeds: {search}); ↓ and ↑ mark the lowest and highest that was tried, beyond which it "
        "might do better.",
        "Steps to AdamW's final loss, as shares of AdamW's steps, and hours to it: medians over "
        "the seeds with the order statistics around them "
        f"({_confidence(experiments)}). The cost of a step is of the process's CPU seconds, in "
        "AdamW's on the same processor (– where AdamW ran on another); memory is what a method "
        "keeps beside the weights, in their bytes.",
    ]
    if any(e["environments"] for e in experiments):
        notes.append(computed_on(experiments))
    packages = {run["package"] for e in experiments for run in e["runs"] if "package" in run}
    if packages:
        notes.append(f"Optimizers that torch lacks come from {', '.join(sorted(packages))}.")
    notes += _about_edges(experiments)
    for experiment in experiments:
        problems = {w["label"]: problem_of(experiment, w["name"]) for w in experiment["wanted"]}
        notes += problem_notes(experiment["workload"], problems)
    return notes


def _about_edges(experiments: Sequence[Results]) -> list[str]:
    edges = sum(bool(m["edge"]) for e in experiments for m in e["methods"])
    chosen = sum(len(e["methods"]) for e in experiments)
    what = "are the lowest or highest that was tried"
    return [f"{edges} of the {chosen} learning rates {what}."] if edges else []


def _confidence(experiments: Sequence[Results]) -> str:
    found = {
        f"{100 * row.steps.confidence:.0f}% confidence"
        for e in experiments
        for row in workload_rows(e)
        if row.steps is not None and len(e["seeds"]) > 1
    }
    return " to ".join(sorted(found)) or "one seed has none"


def markdown(experiments: Sequence[Results]) -> str:
    """Verdicts, what to set, the questions' tables, the workloads' tables, notes."""
    parts = ["**What the study found**\n\n"]
    parts += [f"- {q} **{v}**. {why}\n" for q, v, why in verdicts(experiments)]
    parts += ["\n**What to set**\n\n", *(f"- {said}\n" for said in advice(experiments))]
    for answer in begun(answers(experiments)):
        parts += [
            f"\n**{answer.question.text}** ",
            f"Change of the final loss in %, compared with {answer.reference}\n\n",
            markdown_rows(answer_header(answer), marked(answer_cells(answer))),
        ]
    for experiment in experiments:
        parts += [
            f"\n**{experiment['workload']}** ({experiment['title']})\n\n",
            markdown_rows(workload_header(experiment), workload_cells(experiment)),
        ]
    parts += ["\n", *(f"- {note}\n" for note in notes_of(experiments))]
    return "".join(parts)


BRIEF = ("adamw", "look-ahead", "control")
"""The questions of the one table that says most."""


def brief(experiments: Sequence[Results]) -> str:
    """AdamW, its forecasts and NAdamW over all workloads, in one small Markdown table.

    Of a study of delay: each of its questions in one.
    """
    if any(map(series_of, experiments)):
        return _brief_delays(experiments)
    found = asked(answers(experiments), *BRIEF)
    rows = sorted((row for a in found for row in a.begun), key=lambda row: row.name != "nadamw")
    on_workloads = [one for e in experiments if not e["variant_of"] for one in workload_rows(e)]
    header = [
        *("Method", "Final loss, change to AdamW in %", "Better / worse on"),
        *("Steps to AdamW's final loss", "Cost of a step"),
    ]
    cells: list[list[Cell]] = []
    for row in rows:
        problem = f" ({row.overall.problem})" if row.overall.problem else ""
        own = [one for one in on_workloads if one.label == row.label]
        costs = [one.cost for one in own if one.cost is not None]
        cells.append(
            [
                (row.label, ""),
                (overall_text(row) + problem, row.overall.verdict),
                (f"{counts(row)} of {len(row.effects)}", ""),
                (median_text(middle([one.steps for one in own if one.steps is not None])), ""),
                (NOTHING if not costs else number(statistics.median(costs), 2), ""),
            ]
        )
    seeds = min((len(e["seeds"]) for e in experiments), default=0)
    names = "; ".join(e["workload"] for e in experiments if not e["variant_of"])
    notes = [
        _BRIEF_DESIGN.format(names, seeds),
        "Change of the final validation loss: mean over the tasks with its 95% interval, and p "
        "after Holm's correction; bold, and better or worse on a task, where that is below 0.05. "
        "Steps to AdamW's final loss, as a share of AdamW's: the median task (of two in the middle "
        "the later), and from the best task to the worst. Cost of a step: CPU seconds, in AdamW's, "
        "on the median task.",
        computed_on(experiments),
        *_about_edges(experiments),
    ]
    return markdown_rows(header, marked(cells)) + "\n" + "".join(f"- {note}\n" for note in notes)


_BRIEF_DESIGN = (
    "Tasks: {}. Each method at its own best learning rate, found on other seeds with the same "
    "search for all; then {} fresh seeds, paired (same initial weights, same batches)."
)


def _brief_delays(experiments: Sequence[Results]) -> str:
    """Every question about delay: methods against delays, each cell a mean over the tasks."""
    found = answers(experiments)
    parts = []
    for question in AT_EVERY_DELAY:
        own = {d: a for d in DELAYS for a in asked(found, question.at(d).key)}
        rows = {
            (row.label, delay): (f"{effect_text(row.overall)}; {counts(row)}", row.overall.verdict)
            for delay, answer in own.items()
            for row in answer.begun
        }
        if not rows:
            continue
        cells = [
            [(label, ""), *(rows.get((label, delay), (NOTHING, "")) for delay in own)]
            for label in dict.fromkeys(label for label, _ in rows)
        ]
        parts += [
            f"**{question.text}** Change to {question.reference_label} in %\n\n",
            markdown_rows(["Method", *(f"D = {delay}" for delay in own)], marked(cells)),
            "\n",
        ]
    names = "; ".join(dict.fromkeys(map(series_of, experiments)))
    seeds = min(len(e["seeds"]) for e in experiments)
    notes = [
        _BRIEF_DESIGN.format(names, seeds),
        "Change of the final validation loss: mean over the tasks with its 95% interval, bold "
        "where it holds at 5% after Holm's correction over the methods at that delay; then on how "
        "many of the tasks it is better / worse after a correction over tasks and methods.",
        computed_on(experiments),
        *_about_edges(experiments),
    ]
    return "".join([*parts, *(f"- {note}\n" for note in notes)])


def middle(found: Sequence[MedianInterval]) -> MedianInterval | None:
    """The median of medians, with the lowest and the highest; never counts as highest."""
    medians = sorted(math.inf if one.median is None else one.median for one in found)
    if not medians:
        return None

    def reached(value: float) -> float | None:
        return None if math.isinf(value) else value

    centre = reached(statistics.median_high(medians))
    return MedianInterval(centre, reached(medians[0]), reached(medians[-1]), 1.0)


def csv_text(experiments: Sequence[Results]) -> str:
    """One line a comparison, numbers in full; `overall` is the mean over the workloads."""
    header = [
        *("question", "reference", "method", "workload", "pairs", "log change"),
        *("half width", "corrected p", "verdict", "problem"),
    ]
    rows = [
        [
            *(answer.question.key, answer.question.reference, row.name, workload),
            *(effect.change.n if effect.change else 0, *mean_and_width(effect.change)),
            *(effect.p, effect.verdict, effect.problem),
        ]
        for answer in answers(experiments)
        for row in answer.rows
        for workload, effect in zip(
            (*answer.workloads, "overall"), (*row.effects, row.overall), strict=True
        )
    ]
    return csv_rows(header, rows)


def terminal(experiments: Sequence[Results]) -> RenderableType:
    """The questions' tables, verdicts, what to set, notes."""
    parts: list[RenderableType] = []
    for answer in begun(answers(experiments)):
        header, rows = answer_header(answer), answer_cells(answer)
        parts += [terminal_table(answer.question.text, header, rows), ""]
    for question, verdict, reason in verdicts(experiments):
        parts.append(Text.assemble(question, " ", (verdict, "bold"), ". ", reason))
    parts += [Text(said) for said in advice(experiments)]
    return Group(*parts, *terminal_notes(notes_of(experiments)))
