"""Steps saved: how much shorter a run may be that ends where a rival's ends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from weightcast_lab.results.loading import Results
from weightcast_lab.results.statistics import Interval, mean_interval
from weightcast_lab.trials.answers import MOMENTA, losses
from weightcast_lab.trials.questions import QUESTIONS
from weightcast_lab.trials.workloads import LENGTHS, shorter


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
    """What every candidate of a question saves that has runs at shorter lengths."""
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
