"""What a study shows."""

from __future__ import annotations

from collections.abc import Sequence

from weightcast_lab.report.blocks import (
    WRITTEN,
    Block,
    Card,
    Cards,
    Cell,
    Points,
    Report,
    Table,
    plain,
)
from weightcast_lab.report.tables import (
    NOTHING,
    configurations_of,
    csv_rows,
    facts_of,
    interval_text,
    mean_and_width,
    number,
)
from weightcast_lab.results.loading import Results
from weightcast_lab.results.measures import LOSS_DECIMALS
from weightcast_lab.study.advice import recommendations
from weightcast_lab.study.answers import (
    Answer,
    AnswerRow,
    answers,
    begun,
    heaviest,
)
from weightcast_lab.study.figures import study_figures
from weightcast_lab.study.notes import notes_of
from weightcast_lab.study.pairs import MISSING
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
    """The columns of a question's table; `left_out` is the task without which it has a mean."""
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
    """The columns of a workload's table."""
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


def verdicts(found: Sequence[Answer]) -> list[tuple[str, str, str]]:
    """Every question with its verdict, and why; then what holds without the heaviest task."""
    left_out = heaviest(found)

    def rest(answer: Answer) -> str:
        task = left_out.get(answer.tasks)
        return "" if task is None else f" Without {task}: {answer.verdict_without(task)}."

    return [(a.question.text, a.verdict, a.reason + rest(a)) for a in found]


def csv_text(found: Sequence[Answer]) -> str:
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
        for answer in found
        for row in answer.rows
        for workload, effect in zip(
            (*answer.workloads, "overall", *(f"without {task}" for task in answer.tasks)),
            (*row.effects, row.overall, *row.without),
            strict=True,
        )
    ]
    return csv_rows(header, rows)


def report(experiments: Sequence[Results]) -> Report:
    """All that there is to show of a study."""
    found = answers(experiments)
    cards = [Card(question, said, (why,)) for question, said, why in verdicts(found)]
    blocks: list[Block] = [
        Cards("What the study found", cards),
        Points("What to set", recommendations(found, lambda change: f"{change_text(change)} %")),
        *study_figures(experiments, found),
    ]
    for answer, header, rows in answer_tables(found):
        lead = f"Change of the final loss in %, compared with {answer.reference}"
        narrow = len(header) - (header[-1] == RANGE)
        blocks.append(Table(answer.question.text, header, rows, lead=lead, narrow=narrow))
    for experiment in experiments:
        header, cells = workload_header(experiment), plain(workload_cells(experiment))
        lead = f"({experiment['title']})"
        blocks.append(Table(experiment["workload"], header, cells, lead=lead, places=WRITTEN))
    return Report(
        command="study",
        title="Where forecasting the weights helps",
        facts=facts_of(experiments, "final runs"),
        blocks=blocks,
        notes=notes_of(experiments, found),
        repeat=experiments[0]["command"],
        configuration=configurations_of(experiments, "workload"),
        files={"table.csv": csv_text(found)},
    )
