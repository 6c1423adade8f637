"""What the second study's runs come to: its questions, steps saved, and what a method forgives.

Losses are test losses, compared as logarithms and paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy import stats

from weightcast_lab.results.loading import Results
from weightcast_lab.results.measures import place_of
from weightcast_lab.results.statistics import (
    Interval,
    holm,
    mean_interval,
    p_value,
    standard_error,
    stratified,
)
from weightcast_lab.study.answers import AnswerRow, Effect
from weightcast_lab.trials.protocol import CANDIDATES
from weightcast_lab.trials.questions import QUESTIONS, Question
from weightcast_lab.trials.workloads import (
    LATE_TASKS,
    LENGTHS,
    LONGER,
    TASKS,
    WORKLOADS,
    late,
    shorter,
)

MOMENTA = ("usual", "best")
"""The momentum that people keep, and the one that a search found."""

POWER, LEVEL = 0.8, 0.05


def choice_of(experiment: Results, candidate: str, at: str) -> dict[str, Any] | None:
    """What the search found for a candidate at its usual or best momentum, if it has ended."""
    found = (c for c in experiment["choices"] if (c["candidate"], c["at"]) == (candidate, at))
    return next(found, None)


def runs_of(experiment: Results, choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The final runs at a choice."""
    return [
        run
        for run in experiment["runs"]
        if (run["name"], run["rate"]) == (choice["name"], choice["rate"])
    ]


def losses(
    experiment: Results, candidate: str, at: str, reading: str | None = None
) -> dict[int, tuple[float, Any]]:
    """The final test loss of every seed where the candidate is read, and where it was computed.

    Infinite if the run diverged.
    """
    choice = choice_of(experiment, candidate, at)
    if choice is None:
        return {}
    place = choice["reading"] if reading is None else reading
    found = {}
    for run in runs_of(experiment, choice):
        where = [place_of(experiment["environments"][n]) for n in run["environment"]]
        if run["diverged_at"] is not None:
            found[run["seed"]] = math.inf, where
        elif place in run["readings"]:
            found[run["seed"]] = float(run["readings"][place]["test"]), where
    return found


def changes(
    experiment: Results, candidate: str, reference: str, at: str
) -> tuple[list[float], str]:
    """Changes of the logarithm of the test loss, and which runs are not in them."""
    own, base = (losses(experiment, name, at) for name in (candidate, reference))
    pairs = [(own[s], base[s]) for s in sorted(own.keys() & base.keys()) if own[s][1] == base[s][1]]
    diverged = sum(math.isinf(loss) for loss, _ in own.values())
    finite = [(a, b) for (a, _), (b, _) in pairs if math.isfinite(a) and math.isfinite(b)]
    return (
        [math.log(a / b) for a, b in finite],
        f"{diverged} of {len(own)} diverged" if diverged else "",
    )


@dataclass(frozen=True)
class Row:
    """A candidate against its reference.

    Attributes:
        row: What every workload says, and their mean.
        is_primary: Whether the question is about it.
        momenta: The best, workload by workload; empty at the usual momentum.
        without: The mean without the workload that moves it most, and which that is.
        visible: The change of the mean that the study would show four times out of five.
    """

    row: AnswerRow
    is_primary: bool
    momenta: str
    without: tuple[str, Interval] | None
    visible: float | None


@dataclass(frozen=True)
class Answer:
    """A question at one momentum."""

    question: Question
    at: str
    workloads: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def reference(self) -> str:
        """What is compared with."""
        return CANDIDATES[self.question.reference].label


def answers(experiments: Sequence[Results]) -> list[Answer]:
    """Every question at either momentum, as far as there are runs; of 28,000 steps apart."""
    found = []
    for question in QUESTIONS:
        longer = replace(
            question, key=f"{question.key}-longer", text=f"28,000 steps: {question.text}"
        )
        for one, tasks in ((question, TASKS), (longer, LONGER)):
            keys = {f"{task}-{question.schedule}" for task in tasks}
            if question.delay:
                keys = {late(task, question.delay) for task in LATE_TASKS if task in tasks}
            asked = [e for e in experiments if e["key"] in keys]
            found += [_answer(one, at, asked) for at in MOMENTA]
    return [answer for answer in found if answer.rows]


def _answer(question: Question, at: str, experiments: Sequence[Results]) -> Answer:
    asked = [e for e in experiments if losses(e, question.reference, at)]
    # the protocol's primary comparison is at the best momentum, if that is searched
    is_decided_here = at == "best" or not CANDIDATES[question.primary].momenta
    primary = question.primary if is_decided_here else ""
    workloads = tuple(e["workload"] for e in asked)
    measured = {
        name: [changes(e, name, question.reference, at) for e in asked]
        for name in question.candidates
    }
    measured = {
        name: cells for name, cells in measured.items() if any(len(v) > 1 for v, _ in cells)
    }
    means = {name: stratified([v for v, _ in cells]) for name, cells in measured.items()}
    p_values = _corrected(
        {
            **{
                (name, place): p_value(values)
                for name, cells in measured.items()
                for place, (values, _) in enumerate(cells)
                if len(values) > 1
            },
            **{
                (name, MEAN): mean[1]
                for name, mean in means.items()
                if mean is not None and len(asked) > 1
            },
        },
        (primary, MEAN if len(asked) > 1 else 0),
    )
    rows = []
    for name, cells in measured.items():
        effects = tuple(
            Effect(mean_interval(values), p_values.get((name, place)), problem)
            for place, (values, problem) in enumerate(cells)
        )
        mean, problems = means[name], dict.fromkeys(problem for _, problem in cells if problem)
        overall = Effect(
            None if mean is None else mean[0], p_values.get((name, MEAN)), "; ".join(problems)
        )
        groups = dict(zip(workloads, (values for values, _ in cells), strict=True))
        row = AnswerRow(name, CANDIDATES[name].label, effects, overall, _without_each(groups))
        rows.append(
            Row(
                row,
                name == primary,
                _momenta(name, at, asked),
                without_strongest(row, workloads),
                visible_change(list(groups.values())),
            )
        )
    return Answer(question, at, workloads, tuple(rows))


MEAN = -1
"""The mean over all, in the place of a workload."""


def _corrected(
    p_values: Mapping[tuple[str, int], float], primary: tuple[str, int]
) -> dict[tuple[str, int], float]:
    """The primary comparison as it is; all others corrected as one family."""
    family = {key: p for key, p in p_values.items() if key != primary}
    corrected = dict(zip(family, holm(list(family.values())), strict=True))
    return corrected | {key: p for key, p in p_values.items() if key == primary}


def _momenta(candidate: str, at: str, experiments: Iterable[Results]) -> str:
    """The best momenta of a candidate, workload by workload, if these are searched."""
    if at == "usual":
        return ""
    found = [choice_of(e, candidate, at) for e in experiments]
    return ", ".join(
        "–" if choice is None else choice["name"].partition("-b")[2].partition("-")[0] or "usual"
        for choice in found
    )


def is_full_length(key: str) -> bool:
    """Whether a workload is none of the shorter ones."""
    return key not in {shorter(k, length) for k in WORKLOADS for length in LENGTHS}


def _without_each(groups: Mapping[str, Sequence[float]]) -> tuple[Effect, ...]:
    """The mean without each of the groups in turn."""
    rest = [[v for other, v in groups.items() if other != name] for name in groups]
    means = [stratified(values) for values in rest]
    return tuple(Effect(None if mean is None else mean[0], None) for mean in means)


def without_strongest(row: AnswerRow, workloads: Sequence[str]) -> tuple[str, Interval] | None:
    """The mean without the task that moves it most, and which that is; None for fewer than 3."""
    mean = row.overall.change
    measured = sum(effect.p is not None for effect in row.effects)
    both = zip(workloads, row.without, strict=True)
    rest = {name: effect.change for name, effect in both if effect.change is not None}
    if mean is None or measured < 3:
        return None
    name = max(rest, key=lambda name: abs(rest[name].mean - mean.mean))
    return name, rest[name]


def visible_change(groups: Sequence[Sequence[float]]) -> float | None:
    """The change that a t test at 5% shows in 80% of such studies, given the scatter seen here."""
    several = [group for group in groups if len(group) > 1]
    error, freedom = standard_error(several) if several else (0.0, math.inf)
    if error == 0:
        return None
    quantile = stats.t.ppf(1 - LEVEL / 2, freedom)
    low, high = 0.0, 100.0  # in standard errors
    for _ in range(60):
        middle = (low + high) / 2
        is_seen = stats.nct.sf(quantile, freedom, middle) >= POWER
        low, high = (low, middle) if is_seen else (middle, high)
    return high * error
