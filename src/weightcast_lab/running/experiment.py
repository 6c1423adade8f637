"""From what the user wants to compare to the results file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightcast_lab.errors import LabError
from weightcast_lab.files import FORMAT, digest_of, to_json, write_atomically
from weightcast_lab.methods.optimizers import Method
from weightcast_lab.plugins import foreign, identity, name_in
from weightcast_lab.results.loading import RUN_DEFAULTS
from weightcast_lab.results.records import RunRecord
from weightcast_lab.running.folders import open_folder
from weightcast_lab.running.train import Cell, Job, Settings
from weightcast_lab.running.workers import Failures
from weightcast_lab.tasks import Task


@dataclass(frozen=True)
class Experiment:
    """Runs that have everything in common but method and seed, in a folder of their own.

    `about` is what the report wants to know besides: a title, the metric.
    """

    key: str
    settings: Settings
    folder: Path
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    configuration: dict[str, Any]
    about: dict[str, Any]
    label: str = ""

    def jobs(self) -> list[Job]:
        """All runs, seed by seed."""
        digests = {
            method: digest_of(self.configuration | identity(method.optimizer, "optimizer"))
            for method in self.methods
        }
        cells = [Cell(method, seed) for seed in self.seeds for method in self.methods]
        return [
            Job(cell, self.settings, cell.files(self.folder, digests[cell.method]), self.label)
            for cell in cells
        ]


def open_experiment(
    key: str,
    settings: Settings,
    methods: Iterable[Method],
    seeds: Iterable[int],
    folder: Path,
    task: Task,
    label: str = "",
) -> Experiment:
    """Make the folder of an experiment, or go on in it if it was made with the same configuration.

    Raises:
        LabError: it was not, or it cannot be used, or a setting does not suit the task.
    """
    with foreign(f"The batches of {task.title!r} cannot be made"):
        steps = settings.epochs * len(task.batches(settings.batch_size, torch.Generator()))
    if settings.delay >= steps:
        raise LabError(
            f"--delay {settings.delay} is longer than a run of {steps} steps: no gradient would "
            "ever be applied."
        )
    try:  # as they will be read back, to be compared
        configuration = json.loads(json.dumps(_configuration(settings, task), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise LabError(
            f"The facts of {task.title!r} must be numbers, texts and lists of them: {error}."
        ) from None
    preset = task.preset.learning_rate
    open_folder(folder, configuration)
    about = {
        "title": task.title,
        "metric": vars(task.metric),
        "learning_rate_is_preset": settings.learning_rate == preset,
    }
    return Experiment(
        key, settings, folder, tuple(methods), tuple(seeds), configuration, about, label
    )


def in_order(experiments: Sequence[Experiment]) -> list[Job]:
    """All runs: those that have begun first, then seed by seed."""
    jobs = [job for experiment in experiments for job in experiment.jobs()]
    return sorted(jobs, key=lambda job: (not job.files.has_begun, job.cell.seed))


def content_of(
    experiment: Experiment, results: Mapping[Job, RunRecord], failures: Failures
) -> dict[str, Any]:
    """All that a report needs to know of an experiment."""
    jobs = experiment.jobs()
    own = [results[job] for job in jobs if job in results]
    environments = distinct(e for record in own for e in record.environments)
    return {
        "key": experiment.key,
        **experiment.about,
        "configuration": experiment.configuration,
        "methods": [
            {
                "key": m.key,
                "label": m.label,
                "optimizer": name_in(m.optimizer),
                "steps": str(m.steps) if m.steps == math.inf else m.steps,  # JSON has no infinity
                "learning rate": m.learning_rate or experiment.settings.learning_rate,
            }
            for m in experiment.methods
        ],
        "seeds": list(experiment.seeds),
        "environments": environments,
        "failures": [
            {"method": job.cell.method.key, "seed": job.cell.seed, "reason": failures[job]}
            for job in jobs
            if job in failures
        ],
        "runs": [_compact(record, environments) for record in own],
    }


def save_results(
    folder: Path, kind: str, experiments: Sequence[dict[str, Any]], **about: Any
) -> Path:
    """Write `results.json`: one small file with everything that a report needs."""
    path = folder / "results.json"
    content = {"format": FORMAT, "kind": kind, **about, "experiments": list(experiments)}
    write_atomically(path, to_json(content))
    return path


def _configuration(settings: Settings, task: Task) -> dict[str, Any]:
    """Everything that numbers depend on, except method, seed and machine."""
    hyperparameters = settings.hyperparameters
    with foreign(f"The model of {task.title!r} cannot be built"):
        model = task.build_model()
    return {
        "task": name_in(settings.task),
        **identity(settings.task, "task"),
        **task.facts,
        "parameters": sum(p.numel() for p in model.parameters()),
        "learning rate": settings.learning_rate,
        "milestones": list(settings.milestones),
        "batch size": settings.batch_size,
        "epochs": settings.epochs,
        "betas": None if hyperparameters.betas is None else list(hyperparameters.betas),
        "eps": hyperparameters.eps,
        "weight decay": hyperparameters.weight_decay,
        "gradient clipping": settings.clip_norm,
        "precision": settings.precision,
        "compiled": settings.compiled,
        # only where there is something: folders from before there was such a thing stay valid
        **({"horizons": list(settings.horizons)} if settings.horizons else {}),
        **({"delay": settings.delay} if settings.delay else {}),
        **({"cosine": True, "warm-up": settings.warmup} if settings.cosine else {}),
        **({"averages": list(settings.averages)} if settings.averages else {}),
    }


_COSTS = ("memory", "cpu_seconds", "processor", "package")
"""What runs of earlier versions lack, or most runs."""


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order of their first appearance."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _compact(record: RunRecord, environments: list[Any]) -> dict[str, Any]:
    """What reports read of a run: with seven digits, and without what most runs have not."""

    def shorten(value: Any) -> Any:
        return float(f"{value:.7g}") if isinstance(value, float) else value

    history = {name: list(map(shorten, column)) for name, column in record.history.items()}
    history["seconds"] = [round(value, 2) for value in history["seconds"]]
    test = {name: shorten(value) for name, value in record.test.items()}
    costs = {name: shorten(getattr(record, name)) for name in _COSTS}
    ends = {"diverged_at": record.diverged_at, "test": test}
    return {
        "method": record.method,
        "seed": record.seed,
        "environment": [environments.index(e) for e in record.environments],
        "history": history,
        **{name: value for name, value in costs.items() if value is not None},
        **{name: value for name, value in ends.items() if value != RUN_DEFAULTS[name]},
    }
