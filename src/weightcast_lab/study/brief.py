"""The few tables of a study that say most, for README and the pages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from weightcast_lab.report.blocks import Block, Cell, Report, Table
from weightcast_lab.report.tables import NOTHING, number
from weightcast_lab.results.loading import Results
from weightcast_lab.results.measures import computed_on
from weightcast_lab.results.statistics import MedianInterval
from weightcast_lab.study.answers import Answer, AnswerRow, answers, asked, heaviest
from weightcast_lab.study.notes import about_edges, about_nadamw
from weightcast_lab.study.pairs import series_of
from weightcast_lab.study.questions import AT_EVERY_DELAY
from weightcast_lab.study.text import counts, effect_text, median_text, overall_text, without_text
from weightcast_lab.study.workload_rows import workload_rows
from weightcast_lab.study.workloads import DELAYS

IN_BRIEF = ("adamw", "look-ahead", "control")
"""The questions of the one table that says most: one family."""


def brief(experiments: Sequence[Results]) -> Report:
    """AdamW, its forecasts and NAdamW over all workloads, in one small table.

    Of a study of delay: each of its questions in one.
    """
    if any(map(series_of, experiments)):
        return _brief_delays(experiments)
    every = answers(experiments)
    found = asked(every, *IN_BRIEF)
    left_out = heaviest(every).get(found[0].tasks) if found else None
    rows = sorted(((a, r) for a in found for r in a.begun), key=lambda row: row[1].name != "nadamw")
    on_workloads = [one for e in experiments if not e["variant_of"] for one in workload_rows(e)]
    header = [
        *("Method", "Final loss, change to AdamW in %"),
        *([] if left_out is None else [f"Without {left_out}"]),
        *("Better / worse on", "Steps to AdamW's final loss", "Cost of a step"),
    ]
    cells: list[list[Cell]] = []
    for answer, row in rows:
        problem = f" ({row.overall.problem})" if row.overall.problem else ""
        own = [one for one in on_workloads if one.label == row.label]
        costs = [one.cost for one in own if one.cost is not None]
        cells.append(
            [
                (row.label, ""),
                (overall_text(row) + problem, row.overall.verdict),
                *_rest(answer, row, left_out),
                (f"{counts(row)} of {len(row.effects)}", ""),
                (
                    median_text(
                        median_of_medians([one.steps for one in own if one.steps is not None])
                    ),
                    "",
                ),
                (NOTHING if not costs else number(statistics.median(costs), 2), ""),
            ]
        )
    seeds = min((len(e["seeds"]) for e in experiments), default=0)
    names = "; ".join(e["workload"] for e in experiments if not e["variant_of"])
    notes = [
        _BRIEF_DESIGN.format(names, seeds),
        "Change of the final validation loss: mean over the tasks with its 95% interval, and p "
        "after Holm's correction over all rows; bold, and better or worse on a task, where that is "
        f"below 0.05.{_about_rest(left_out)} "
        "Steps to AdamW's final loss, as a share of AdamW's: the median task (of two in the middle "
        "the later), and from the best task to the worst. Cost of a step: CPU seconds, in AdamW's, "
        "on the median task.",
        computed_on(experiments),
        *about_nadamw(experiments),
        *about_edges(experiments),
    ]
    return _report([Table("", header, cells)], notes)


def _report(tables: list[Block], notes: list[str]) -> Report:
    return Report("study", "In brief", (), tables, notes, "", {})


_BRIEF_DESIGN = (
    "Tasks: {}. Each method at its own best learning rate, found on other seeds with the same "
    "search for all; then {} fresh seeds, paired (same initial weights, same batches)."
)


def _rest(answer: Answer, row: AnswerRow, left_out: str | None) -> list[Cell]:
    """The mean without the heaviest task, if there is one."""
    if left_out is None:
        return []
    if left_out not in answer.tasks:
        return [(NOTHING, "")]
    place = answer.tasks.index(left_out)
    return [(without_text(row, place), row.without[place].verdict)]


def _about_rest(left_out: str | None) -> str:
    return "" if left_out is None else f" {left_out}, is the task that moves the means most."


def _brief_delays(experiments: Sequence[Results]) -> Report:
    """Every question about delay: methods against delays, each cell a mean over the tasks."""
    found = answers(experiments)
    left_out = heaviest(found)
    tables: list[Block] = []
    for question in AT_EVERY_DELAY:
        own = {d: a for d in DELAYS for a in asked(found, question.at(d).key)}
        rows: dict[str, dict[int, Cell]] = {}
        for delay, answer in own.items():
            task = left_out.get(answer.tasks)
            for row in answer.begun:
                text = f"{effect_text(row.overall)}; {counts(row)}"
                rows.setdefault(row.label, {})[delay] = (text, row.overall.verdict)
                if task is not None:
                    rest = row.without[answer.tasks.index(task)]
                    cell = (effect_text(rest), rest.verdict)
                    rows.setdefault(f"{row.label}, without {task}", {})[delay] = cell
        if not rows:
            continue
        cells = [
            [(label, ""), *(cells.get(delay, (NOTHING, "")) for delay in own)]
            for label, cells in rows.items()
        ]
        header = ["Method", *(f"D = {delay}" for delay in own)]
        lead = f"Change to {question.reference_label} in %"
        tables.append(Table(question.text, header, cells, lead=lead))
    names = "; ".join(dict.fromkeys(map(series_of, experiments)))
    seeds = min(len(e["seeds"]) for e in experiments)
    notes = [
        _BRIEF_DESIGN.format(names, seeds),
        "Change of the final validation loss: mean over the tasks with its 95% interval, bold "
        "where it holds at 5% after Holm's correction over the methods at that delay; then on how "
        "many of the tasks it is better / worse after a correction over tasks and methods. Below "
        "it the mean without the task that moves the means most, corrected likewise.",
        computed_on(experiments),
        *about_nadamw(experiments),
        *about_edges(experiments),
    ]
    return _report(tables, notes)


def median_of_medians(found: Sequence[MedianInterval]) -> MedianInterval | None:
    """The median of medians, with the lowest and the highest; never counts as highest."""
    medians = sorted(math.inf if one.median is None else one.median for one in found)
    if not medians:
        return None

    def reached(value: float) -> float | None:
        return None if math.isinf(value) else value

    centre = reached(statistics.median_high(medians))
    return MedianInterval(centre, reached(medians[0]), reached(medians[-1]), 1.0)
