"""Numbers of a study as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from weightcast_lab.report.tables import NOTHING, number
from weightcast_lab.results.statistics import Interval, MedianInterval
from weightcast_lab.study.answers import AnswerRow, Effect
from weightcast_lab.study.workload_rows import WorkloadRow

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
    return _mean_text(row.overall, row.effects)


def without_text(row: AnswerRow, place: int) -> str:
    """The mean without the workload in that place."""
    return _mean_text(row.without[place], [*row.effects[:place], *row.effects[place + 1 :]])


def _mean_text(mean: Effect, effects: Sequence[Effect]) -> str:
    if mean.p is None:
        return change_text(mean.change)
    measured = sum(effect.p is not None for effect in effects)
    some = "" if measured == len(effects) else f" (of {measured})"
    return f"{change_text(mean.change)}, p {p_text(mean.p)}{some}"


def range_text(row: AnswerRow, tasks: Sequence[str]) -> str:
    """`−3.4 (Digits, CNN) to −0.5 (…)`: the lowest and the highest mean without one task."""
    means = sorted(
        (rest.change.mean, task)
        for rest, task in zip(row.without, tasks, strict=True)
        if rest.change is not None
    )
    ends = [
        f"{number(in_percent(mean), PERCENT_DECIMALS, sign=True)} ({task})"
        for mean, task in (means[:1] + means[-1:])
    ]
    return " to ".join(ends) or NOTHING


def counts(row: AnswerRow) -> str:
    """How many workloads it is better / worse on."""
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
