"""What a method forgives, and what its final loss is where it is not read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from weightcast_lab.results.loading import Results
from weightcast_lab.results.statistics import Interval, mean_interval
from weightcast_lab.running.readings import TRUE
from weightcast_lab.trials.answers import choice_of, is_full_length, runs_of
from weightcast_lab.trials.protocol import COARSE, SEARCH_SEEDS

FORGIVEN = 0.02
"""How much worse than its best a rate may be."""


@dataclass(frozen=True)
class Tolerance:
    """Over what factor of rates a candidate ends within 2 % of its own best.

    `is_open` if the range extends beyond the rates that were tried.
    """

    candidate: str
    workload: str
    best_rate: float
    factor: float
    is_open: bool
    grid: Mapping[tuple[str, float], float]


def tolerances(experiments: Sequence[Results]) -> Iterator[Tolerance]:
    """The tolerance of every candidate and workload, from the first seed at the usual momentum."""
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
