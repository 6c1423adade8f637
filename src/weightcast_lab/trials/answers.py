"""What the second study's runs come to: its questions, steps saved, and what a method forgives.

Losses are test losses, compared as logarithms and paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import stats

from weightcast_lab.evidence import AnswerRow, Effect
from weightcast_lab.readings import TRUE
from weightcast_lab.results import Results
from weightcast_lab.statistics import Interval, holm, mean_interval, p_value, stratified
from weightcast_lab.trials.protocol import (
    CANDIDATES,
    COARSE,
    LENGTHS,
    QUESTIONS,
    SEARCH_SEEDS,
    WORKLOADS,
    Question,
    shorter,
)

MOMENTA = ("usual", "best")
"""At the momentum that people keep, or at the one that its search found."""

POWER, LEVEL = 0.8, 0.05

FORGIVEN = 0.02
"""How much worse than its best a rate may be."""


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
    """By seed: the final test loss where the candidate is read, and where it was computed.

    Infinite if the run diverged.
    """
    choice = choice_of(experiment, candidate, at)
    if choice is None:
        return {}
    place = choice["reading"] if reading is None else reading
    found = {}
    for run in runs_of(experiment, choice):
        where = [experiment["environments"][n] for n in run["environment"]]
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
    """Every question at either momentum, as far as there are runs."""
    found = [_answer(question, at, experiments) for question in QUESTIONS for at in MOMENTA]
    return [answer for answer in found if answer.rows]


def _answer(question: Question, at: str, experiments: Sequence[Results]) -> Answer:
    asked = [
        e
        for e in experiments
        if e["trial"] == question.schedule
        and is_full_length(e["key"])
        and losses(e, question.reference, at)
    ]
    workloads = tuple(e["workload"] for e in asked)
    measured: dict[str, list[tuple[list[float], str]]] = {}
    for name in question.candidates:
        cells = [changes(e, name, question.reference, at) for e in asked]
        if any(len(values) > 1 for values, _ in cells):
            measured[name] = cells
    is_tested = [len(values) > 1 for cells in measured.values() for values, _ in cells]
    # the primary comparison is the mean's; all else is one family
    raw = [p_value(values) for cells in measured.values() for values, _ in cells if len(values) > 1]
    means = {name: stratified([v for v, _ in cells]) for name, cells in measured.items()}
    secondary = [
        mean[1] for name, mean in means.items() if mean is not None and name != question.primary
    ]
    corrected = iter(holm([*raw, *secondary]))
    singles = [next(corrected) if tested else None for tested in is_tested]
    rows = []
    for name, cells in measured.items():
        effects = tuple(
            Effect(mean_interval(values), singles.pop(0), problem) for values, problem in cells
        )
        rows.append((name, effects))
    found = []
    for name, effects in rows:
        mean = means[name]
        is_primary = name == question.primary
        p = None if mean is None else mean[1] if is_primary else next(corrected)
        problems = dict.fromkeys(problem for _, problem in measured[name] if problem)
        overall = Effect(None if mean is None else mean[0], p, "; ".join(problems))
        groups = {
            e["workload"]: values for e, (values, _) in zip(asked, measured[name], strict=True)
        }
        row = AnswerRow(name, CANDIDATES[name].label, effects, overall, _without_each(groups))
        found.append(
            Row(
                row,
                is_primary,
                _momenta(name, at, asked),
                without_strongest(row, workloads),
                visible_change(list(groups.values())),
            )
        )
    return Answer(question, at, workloads, tuple(found))


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
    found = stratified(groups)
    several = [group for group in groups if len(group) > 1]
    if found is None or not found[0].half_width:
        return None
    parts = [float(np.var(group, ddof=1)) / len(group) for group in several]
    error = math.sqrt(sum(parts)) / len(several)
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(group) - 1) for part, group in zip(parts, several, strict=True)
    )
    quantile = stats.t.ppf(1 - LEVEL / 2, freedom)
    low, high = 0.0, 100.0  # in standard errors
    for _ in range(60):
        middle = (low + high) / 2
        is_seen = stats.nct.sf(quantile, freedom, middle) >= POWER
        low, high = (low, middle) if is_seen else (middle, high)
    return high * error


# --- steps saved ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saving:
    """The share of its steps that a candidate saves on the way to its rival's final loss.

    `share` is None where the runs of all lengths end below the rival (`is_more`) or above it.
    """

    candidate: str
    rival: str
    workload: str
    at: str
    share: Interval | None
    is_more: bool = False


def savings(experiments: Sequence[Results]) -> Iterator[Saving]:
    """For every pair of candidates of a question that have runs at shorter lengths."""
    by_key = {e["key"]: e for e in experiments}
    for key, full in by_key.items():
        lengths = {x: by_key[shorter(key, x)] for x in LENGTHS if shorter(key, x) in by_key}
        for question, at in ((q, at) for q in QUESTIONS for at in MOMENTA if lengths):
            rivals = dict.fromkeys((question.reference, *question.candidates))
            for name in dict.fromkeys((question.primary, *question.candidates)):
                for rival in rivals:
                    found = _saving({1.0: full, **lengths}, name, rival, at)
                    if found is not None and name != rival:
                        yield replace(found, workload=full["workload"])


def _saving(lengths: Mapping[float, Results], name: str, rival: str, at: str) -> Saving | None:
    targets = losses(lengths[1.0], rival, at)
    own = {length: losses(e, name, at) for length, e in lengths.items()}
    seeds = sorted(set(targets).intersection(*own.values()))
    if len(lengths) < 2 or len(seeds) < 2:
        return None
    reached = []
    for seed in seeds:
        logarithms = [math.log(length) for length in own]
        slope, level = np.polyfit(logarithms, [found[seed][0] for found in own.values()], 1)
        if not (slope < 0 and math.isfinite(level)):
            return None
        reached.append(math.exp((targets[seed][0] - level) / slope))
    mean = float(np.mean(reached))
    if not min(lengths) <= mean <= 1:
        return Saving(name, rival, "", at, None, is_more=mean < 1)
    return Saving(name, rival, "", at, mean_interval([1 - length for length in reached]))


# --- what a method forgives ----------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """Over what factor of rates a candidate ends within 2 % of its own best.

    `is_open` if the range goes on beyond the rates that were tried.
    """

    candidate: str
    workload: str
    best_rate: float
    factor: float
    is_open: bool
    grid: Mapping[tuple[str, float], float]


def tolerances(experiments: Sequence[Results]) -> Iterator[Tolerance]:
    """For every candidate and workload, at the usual momentum, from the first search seed."""
    for experiment in experiments:
        for candidate in dict.fromkeys(c["candidate"] for c in experiment["choices"]):
            choice = choice_of(experiment, candidate, "usual")
            if choice is None or not is_full_length(experiment["key"]):
                continue
            grid = {
                (run["name"], run["rate"]): run["readings"][choice["reading"]]["validation"]
                for run in experiment["search"]
                if run["seed"] == SEARCH_SEEDS[0] and choice["reading"] in run["readings"]
            }
            own = sorted(
                (rate, loss) for (name, rate), loss in grid.items() if name == choice["name"]
            )
            if len(own) < len(COARSE):
                continue
            limit = min(loss for _, loss in own) * (1 + FORGIVEN)
            low, is_low_open = _crossing(own, limit)
            high, is_high_open = _crossing(own[::-1], limit)
            yield Tolerance(
                candidate,
                experiment["workload"],
                choice["rate"],
                high / low,
                is_low_open or is_high_open,
                grid,
            )


def _crossing(points: Sequence[tuple[float, float]], limit: float) -> tuple[float, bool]:
    """Where the loss first comes down to the limit, in the rate's logarithm; or the first."""
    if points[0][1] <= limit:
        return points[0][0], True
    for (rate, loss), (after, lower) in pairwise(points):
        if lower <= limit:
            share = (loss - limit) / (loss - lower) if math.isfinite(loss) else 1.0
            return math.exp(math.log(rate) + share * math.log(after / rate)), False
    raise AssertionError("the lowest point is within the limit")


def readings_of(experiment: Results, candidate: str) -> dict[str, Interval | None]:
    """The final test loss at every place that was read, at the usual momentum; θ first."""
    choice = choice_of(experiment, candidate, "usual")
    runs = [] if choice is None else runs_of(experiment, choice)
    places = dict.fromkeys((TRUE, *(place for run in runs for place in run["readings"])))
    return {
        place: mean_interval(
            [run["readings"][place]["test"] for run in runs if place in run["readings"]]
        )
        for place in places
    }
