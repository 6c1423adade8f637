"""Runs that have everything in common but method and seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightcast_lab.errors import LabError
from weightcast_lab.files import digest_of
from weightcast_lab.methods.method import Method
from weightcast_lab.plugins import foreign, identity, name_in
from weightcast_lab.running.folders import open_folder
from weightcast_lab.running.jobs import Job, Run
from weightcast_lab.running.recipe import Recipe
from weightcast_lab.tasks import Task


@dataclass(frozen=True)
class Experiment:
    """Runs that have everything in common but method and seed, in a folder of their own.

    `about` is what the report wants to know besides: a title, the metric.
    """

    key: str
    recipe: Recipe
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
        runs = [Run(method, seed) for seed in self.seeds for method in self.methods]
        return [
            Job(run, self.recipe, run.files(self.folder, digests[run.method]), self.label)
            for run in runs
        ]


def open_experiment(
    key: str,
    recipe: Recipe,
    methods: Iterable[Method],
    seeds: Iterable[int],
    folder: Path,
    task: Task,
    label: str = "",
    **about: Any,
) -> Experiment:
    """Make the folder of an experiment, or resume in it if its configuration is the same.

    What is said `about` it besides is for its report.

    Raises:
        LabError: it was not, or it cannot be used, or a setting does not suit the task.
    """
    with foreign(f"The batches of {task.title!r} cannot be made"):
        steps = recipe.epochs * len(task.batches(recipe.batch_size, torch.Generator()))
    if recipe.delay >= steps:
        raise LabError(
            f"--delay {recipe.delay} is longer than a run of {steps} steps: no gradient would "
            "ever be applied."
        )
    try:  # as they will be read back, to be compared
        configuration = json.loads(json.dumps(_configuration(recipe, task), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise LabError(
            f"The facts of {task.title!r} must be numbers, texts and lists of them: {error}."
        ) from None
    preset = task.preset.learning_rate
    open_folder(folder, configuration)
    about |= {
        "title": task.title,
        "metric": vars(task.metric),
        "learning_rate_is_preset": recipe.learning_rate == preset,
    }
    return Experiment(
        key, recipe, folder, tuple(methods), tuple(seeds), configuration, about, label
    )


def resume_order(experiments: Sequence[Experiment]) -> list[Job]:
    """All runs: those that have begun first, then seed by seed."""
    jobs = [job for experiment in experiments for job in experiment.jobs()]
    return sorted(jobs, key=lambda job: (not job.files.has_begun, job.run.seed))


def _configuration(recipe: Recipe, task: Task) -> dict[str, Any]:
    """Everything that numbers depend on, except method, seed and machine."""
    hyperparameters = recipe.hyperparameters
    with foreign(f"The model of {task.title!r} cannot be built"):
        model = task.build_model()
    return {
        "task": name_in(recipe.task),
        **identity(recipe.task, "task"),
        **task.facts,
        "parameters": sum(p.numel() for p in model.parameters()),
        "learning rate": recipe.learning_rate,
        "milestones": list(recipe.milestones),
        "batch size": recipe.batch_size,
        "epochs": recipe.epochs,
        "betas": None if hyperparameters.betas is None else list(hyperparameters.betas),
        "eps": hyperparameters.eps,
        "weight decay": hyperparameters.weight_decay,
        "gradient clipping": recipe.clip_norm,
        "precision": recipe.precision,
        "compiled": recipe.compiled,
        # only where there is something: folders from before there was such a thing stay valid
        **({"horizons": list(recipe.horizons)} if recipe.horizons else {}),
        **({"delay": recipe.delay} if recipe.delay else {}),
        **({"cosine": True, "warm-up": recipe.warmup} if recipe.cosine else {}),
        **({"averages": list(recipe.averages)} if recipe.averages else {}),
    }
