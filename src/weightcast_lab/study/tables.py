"""The tables of a study: for the terminal, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from weightcast_lab.report.tables import (
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
from weightcast_lab.results.loading import Results
from weightcast_lab.results.measures import LOSS_DECIMALS, computed_on
from weightcast_lab.study.advice import recommendations
from weightcast_lab.study.answers import (
    Answer,
    AnswerRow,
    answers,
    asked,
    begun,
    heaviest,
)
from weightcast_lab.study.pairs import MISSING, problem_of
from weightcast_lab.study.questions import UNTUNED
from weightcast_lab.study.text import (
    change_text,
    effect_text,
    median_text,
    overall_text,
    range_text,
    rate_text,
    without_text,
)
from weightcast_lab.study.workload_rows import QUANTITIES, WorkloadRow, test_names, workload_rows

RANGE = "Means without one task: lowest to highest"


def answer_header(answer: Answer, left_out: str | None = None) -> list[str]:
    """Of a question's table; `left_out` is the task without which there is another mean."""
    several = len(answer.workloads) > 1
    rest = [f"Mean without {left_out}", RANGE]
    return [
        *("Method", *answer.workloads),
        *(["Mean"] if several else []),
        *(rest if left_out is not None else []),
    ]


def answer_cells(answer: Answer, left_out: str | None = None) -> list[list[Cell]]:
    """Text and verdict of every cell of a question's table, the method's label first."""
    several = len(answer.workloads) > 1

    def rest(row: AnswerRow) -> list[Cell]:
        if left_out is None:
            return []
        place = answer.tasks.index(left_out)
        mean = (without_text(row, place), row.without[place].verdict)
        return [mean, (range_text(row, answer.tasks), "")]

    return [
        [
            (row.label, ""),
            *((effect_text(effect), effect.verdict) for effect in row.effects),
            *([(overall_text(row), row.overall.verdict)] if several else []),
            *rest(row),
        ]
        for row in answer.begun
    ]


def answer_tables(found: Sequence[Answer]) -> list[tuple[Answer, list[str], list[list[Cell]]]]:
    """Every question that has anything to show, with header and rows of its table."""
    left_out = heaviest(found)
    return [
        (answer, answer_header(answer, rest), answer_cells(answer, rest))
        for answer in begun(found)
        for rest in [left_out.get(answer.tasks)]
    ]


def workload_header(experiment: Results) -> list[str]:
    """Of a workload's table."""
    metric = experiment["metric"]
    best = "Highest" if metric["higher_is_better"] else "Lowest"
    return [
        *("Method", "Learning rate", "Final loss", "Lowest loss"),
        *(f"Final {metric['name']}", f"{best} {metric['name']}"),
        *(column for name in test_names(experiment) for column in _test_columns(name)),
        *("Steps to AdamW's final loss", "Hours to it", "Cost of a step", "Memory"),
    ]


def _test_columns(name: str) -> tuple[str, str]:
    return f"{name[0].upper()}{name[1:]}", f"{name[0].upper()}{name[1:]}, change to AdamW in %"


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
            *_tests(row, decimals["final metric"]),
            median_text(row.steps),
            median_text(row.hours),
            NOTHING if row.cost is None else number(row.cost, 2),
            NOTHING if row.memory is None else number(row.memory, 2),
        ]
        for row in workload_rows(experiment)
        if row.problem != MISSING
    ]


def _tests(row: WorkloadRow, decimals: int) -> list[str]:
    return [
        text
        for value, change in row.tests.values()
        for text in (interval_text(value, decimals), change_text(change))
    ]


def verdicts(experiments: Sequence[Results]) -> list[tuple[str, str, str]]:
    """Every question with its verdict, and why; then what holds without the heaviest task."""
    found = answers(experiments)
    left_out = heaviest(found)

    def rest(answer: Answer) -> str:
        task = left_out.get(answer.tasks)
        return "" if task is None else f" Without {task}: {answer.verdict_without(task)}."

    return [(a.question.text, a.verdict, a.reason + rest(a)) for a in found]


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
        "after Holm's correction over the whole table (the means: over its methods); AdamW's "
        "forecasts, the control and NAdamW against AdamW count as one table. The mean is over "
        "these workloads and speaks of no others; what to set names the lowest of several means, "
        "and picking the lowest flatters.",
        "Means without one task show what a mean rests on. They were added when the results were "
        "known, and are corrected over the table's methods like the mean itself.",
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
    if asked(answers(experiments), UNTUNED.key):
        notes.append(
            "With nothing retuned: every method at the learning rate that was chosen for AdamW, in "
            f"the search's own runs (seeds: {search}), paired by seed. They chose that rate, and "
            "so flatter AdamW if any; what they cannot do with so few seeds is tell small changes "
            "of one task from chance."
        )
    packages = {run["package"] for e in experiments for run in e["runs"] if "package" in run}
    if packages:
        notes.append(f"Optimizers that torch lacks come from {', '.join(sorted(packages))}.")
    notes += [*about_nadamw(experiments), *about_edges(experiments)]
    for experiment in experiments:
        problems = {w["label"]: problem_of(experiment, w["name"]) for w in experiment["wanted"]}
        notes += problem_notes(experiment["workload"], problems)
    return notes


def about_nadamw(experiments: Sequence[Results]) -> list[str]:
    """What is called so, if it ran."""
    if all(m["optimizer"] != "nadamw" for e in experiments for m in e["methods"]):
        return []
    return [
        "NAdamW is torch.optim.NAdam as torch makes it, with decoupled weight decay. Its "
        "momentum_decay of 0.004 keeps the look-ahead's μ near half of β₁ in runs as short as "
        "these; the NAdamW of the literature, AlgoPerf's for one, with μ = β₁, is not among them."
    ]


def about_edges(experiments: Sequence[Results]) -> list[str]:
    """How many of the learning rates that ran are the lowest or highest that was tried."""
    ran = [
        m
        for e in experiments
        for m in e["methods"]
        if any(r["method"] == m["key"] for r in e["runs"])
    ]
    edges, chosen = sum(bool(m["edge"]) for m in ran), len(ran)
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
    for answer, header, rows in answer_tables(answers(experiments)):
        parts += [
            f"\n**{answer.question.text}** ",
            f"Change of the final loss in %, compared with {answer.reference}\n\n",
            markdown_rows(header, marked(rows)),
        ]
    for experiment in experiments:
        parts += [
            f"\n**{experiment['workload']}** ({experiment['title']})\n\n",
            markdown_rows(workload_header(experiment), workload_cells(experiment)),
        ]
    parts += ["\n", *(f"- {note}\n" for note in notes_of(experiments))]
    return "".join(parts)


def csv_text(experiments: Sequence[Results]) -> str:
    """One line a comparison, numbers in full.

    `overall` is the mean over the workloads, `without …` that over the others.
    """
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
            (*answer.workloads, "overall", *(f"without {task}" for task in answer.tasks)),
            (*row.effects, row.overall, *row.without),
            strict=True,
        )
    ]
    return csv_rows(header, rows)


def terminal(experiments: Sequence[Results]) -> RenderableType:
    """The questions' tables, verdicts, what to set, notes."""
    parts: list[RenderableType] = []
    for answer, header, rows in answer_tables(answers(experiments)):
        columns = len(header) - (header[-1] == RANGE)  # as many as a terminal has room for
        narrow = [row[:columns] for row in rows]
        parts += [terminal_table(answer.question.text, header[:columns], narrow), ""]
    for question, verdict, reason in verdicts(experiments):
        parts.append(Text.assemble(question, " ", (verdict, "bold"), ". ", reason))
    parts += [Text(said) for said in advice(experiments)]
    return Group(*parts, *terminal_notes(notes_of(experiments)))
