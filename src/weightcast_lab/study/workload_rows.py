"""The numbers of every method on a workload: losses, metrics, steps, hours, cost, memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightcast_lab.results.loading import Results, StoredRun
from weightcast_lab.results.measures import finished, measure, steps_ratio
from weightcast_lab.results.statistics import (
    Interval,
    MedianInterval,
    mean_interval,
    median_interval,
)
from weightcast_lab.study.pairs import REFERENCE, key_of, paired, problem_of


@dataclass(frozen=True)
class WorkloadRow:
    """A method's numbers on a workload.

    `steps` and `hours` are to AdamW's final loss, as shares of AdamW's; `cost` is of a step, in
    AdamW's; `memory` is beside the weights, in their bytes. `tests` are what was measured on test
    data, by name, and the paired change of its logarithm against AdamW.
    """

    label: str
    learning_rate: float | None
    edge: str
    values: dict[str, Interval | None]
    steps: MedianInterval | None
    hours: MedianInterval | None
    cost: float | None
    memory: float | None
    tests: dict[str, tuple[Interval | None, Interval | None]]
    problem: str


def workload_rows(experiment: Results) -> list[WorkloadRow]:
    """All methods that were to be run on a workload."""
    return [_workload_row(experiment, w["name"], w["label"]) for w in experiment["wanted"]]


QUANTITIES = ("final loss", "best loss", "final metric", "best metric")


def _workload_row(experiment: Results, name: str, label: str) -> WorkloadRow:
    key = key_of(experiment, name)
    method: dict[str, Any] = next((m for m in experiment["methods"] if m["key"] == key), {})
    runs = list(finished(experiment, key).values()) if key else []
    higher = experiment["metric"]["higher_is_better"]
    measured = [measure(run, higher) for run in runs]
    both = paired(experiment, name, REFERENCE)
    steps = [steps_ratio(run, other) for run, other in both]
    cost = _median(
        _seconds(experiment, run) / _seconds(experiment, other)
        for run, other in both
        if run.get("processor") == other.get("processor")  # seeds may be compared, speeds not
    )
    memories = [run["memory"] for run in runs if "memory" in run]
    return WorkloadRow(
        label=label,
        learning_rate=method.get("learning rate"),
        edge=method.get("edge", ""),
        values={q: mean_interval([m[q] for m in measured]) for q in QUANTITIES},
        steps=median_interval(steps),
        hours=None
        if cost is None
        else median_interval([None if share is None else share * cost for share in steps]),
        cost=cost,
        memory=_median(memories),
        tests={
            test: _tested(test, runs, both if name != REFERENCE else [])
            for test in test_names(experiment)
        },
        problem=problem_of(experiment, name),
    )


def test_names(experiment: Results) -> list[str]:
    """The names of what was measured on test data."""
    return list(dict.fromkeys(name for run in experiment["runs"] for name in run["test"]))


def _tested(
    name: str, runs: Iterable[StoredRun], both: Iterable[tuple[StoredRun, StoredRun]]
) -> tuple[Interval | None, Interval | None]:
    changes = [math.log(run["test"][name] / other["test"][name]) for run, other in both]
    return mean_interval([run["test"][name] for run in runs]), mean_interval(changes)


def _seconds(experiment: Results, run: StoredRun) -> float:
    """What one step took, evaluations included: CPU seconds on a CPU, else on the clock."""
    devices = {experiment["environments"][n]["device"] for n in run["environment"]}
    seconds = run["cpu_seconds"] if devices == {"cpu"} else run["history"]["seconds"][-1]
    return float(seconds) / float(run["history"]["step"][-1])


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.median(found)) if found else None
