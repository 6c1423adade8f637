"""What `weightcast foresight` measures: every workload as it is, and two with one thing changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightcast_lab.methods.method import Method
from weightcast_lab.results.records import RunRecord
from weightcast_lab.running.contents import content_of
from weightcast_lab.running.experiment import Experiment, open_experiment
from weightcast_lab.running.folders import open_folder
from weightcast_lab.running.jobs import Job
from weightcast_lab.running.workers import Failures
from weightcast_lab.study.workloads import SIX, WORKLOADS, Workload, settings_of, tasks_of
from weightcast_lab.tasks import DataSource

HORIZONS = (1, 2, 3, 5, 8, 16)
"""How many steps ahead."""

SEEDS = (0, 1)

VARIED = ("text-lstm", "cifar10-bn")
BETA1S = (0.8, 0.95, 0.98)
RATE_MULTIPLES = (0.3, 3.0)
BATCH_MULTIPLES = (0.25, 4.0)


@dataclass(frozen=True)
class Setting:
    """A workload as it is (`varied` is empty), or with one thing changed.

    `value` is what that thing is set to.
    """

    key: str
    base: str
    workload: Workload
    methods: tuple[Method, ...]
    varied: str = ""
    value: float | None = None


def settings() -> tuple[Setting, ...]:
    """All that is measured: every workload, then the variations of two of them."""
    return (*map(_as_it_is, SIX), *(s for base in VARIED for s in _variations(base)))


def _as_it_is(base: str) -> Setting:
    workload = WORKLOADS[base]
    sgd = Method("sgd", learning_rate=workload.sgd_rate)
    return Setting(base, base, workload, (Method("adamw"), Method("adamw", 3.0), sgd))


def _variations(base: str) -> list[Setting]:
    usual = WORKLOADS[base]

    def changed(name: str, value: float, **change: Any) -> Setting:
        workload = replace(usual, **change)
        key = f"{base}-{name.replace(' ', '-')}-{value:g}"
        return Setting(key, base, workload, (Method("adamw"),), name, value)

    rates = [float(f"{multiple * usual.learning_rate:.3g}") for multiple in RATE_MULTIPLES]
    sizes = [round(multiple * usual.batch_size) for multiple in BATCH_MULTIPLES]
    return [
        *(changed("beta1", beta1, betas=(beta1, 0.999)) for beta1 in BETA1S),
        *(changed("learning rate", rate, learning_rate=rate) for rate in rates),
        *(changed("batch size", size, batch_size=size) for size in sizes),
    ]


def open_foresight(
    source: DataSource, device: str, folder: Path, seeds: int | None = None
) -> list[tuple[Setting, Experiment]]:
    """One experiment a setting, each in a folder of its own in `folder`.

    Raises:
        LabError: data cannot be used, or the folder holds something else.
    """
    open_folder(folder, {"kind": "foresight", "horizons": list(HORIZONS)})
    how = {
        setting.key: replace(settings_of(setting.workload, source, device), horizons=HORIZONS)
        for setting in settings()
    }
    tasks = tasks_of(how)
    opened = []
    for setting in settings():
        label = setting.workload.label
        if setting.varied:
            label += f", {setting.varied} {setting.value:g}"
        chosen = SEEDS if seeds is None else range(seeds)
        key, methods = setting.key, setting.methods
        experiment = open_experiment(
            key, how[key], methods, chosen, folder / key, tasks[key], label
        )
        opened.append((setting, experiment))
    return opened


def contents_of(
    opened: Iterable[tuple[Setting, Experiment]],
    results: Mapping[Job, RunRecord],
    failures: Failures,
) -> list[dict[str, Any]]:
    """All that a report needs to know."""
    return [
        {
            **content_of(experiment, results, failures),
            "workload": WORKLOADS[setting.base].label,
            "base": setting.base,
            "varied": setting.varied,
            "value": setting.value,
        }
        for setting, experiment in opened
    ]
