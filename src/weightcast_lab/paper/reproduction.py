"""The paper's experiments: from names of networks and a preset to runs and the results file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightcast_lab.methods.method import Hyperparameters, exact
from weightcast_lab.paper.protocol import (
    BASELINE,
    BETA1,
    EPS,
    METHODS,
    WEIGHT_DECAY,
    networks_named,
    preset_named,
)
from weightcast_lab.results.records import RunRecord
from weightcast_lab.running.contents import content_of
from weightcast_lab.running.experiment import Experiment, open_experiment
from weightcast_lab.running.folders import open_folder
from weightcast_lab.running.jobs import Job, Settings
from weightcast_lab.running.workers import Failures
from weightcast_lab.tasks import DataSource


@dataclass(frozen=True)
class Wanted:
    """What of the paper is to be reproduced, and how."""

    names: tuple[str, ...]
    preset: str
    seeds: int | None
    beta2s: tuple[float, ...]
    source: DataSource
    device: str
    precision: str
    compiled: bool
    clip_norm: float | None


def open_reproduction(wanted: Wanted, folder: Path) -> list[Experiment]:
    """One experiment for each network and β₂, each in a folder of its own in `folder`.

    Raises:
        LabError: a name does not exist, data cannot be used, or the folder holds something else.
    """
    preset = preset_named(wanted.preset)
    networks = networks_named(wanted.names)
    settings = {
        (network, beta2): _settings(wanted, network, beta2)
        for beta2 in dict.fromkeys(wanted.beta2s)
        for network in networks
    }
    open_folder(folder, {"kind": "reproduction", "preset": wanted.preset})
    return [
        open_experiment(
            f"{network}-beta2-{exact(beta2)}",
            setting,
            (*METHODS, BASELINE),
            range(wanted.seeds or preset.seeds),
            folder / f"{network}-beta2-{exact(beta2)}",
            setting.make_task(),
            label=preset.recipe(network).label
            + (f", β₂ = {exact(beta2)}" if len(wanted.beta2s) > 1 else ""),
        )
        for (network, beta2), setting in settings.items()
    ]


def _settings(wanted: Wanted, network: str, beta2: float) -> Settings:
    recipe = preset_named(wanted.preset).recipe(network)
    return Settings(
        task=recipe.task,
        source=wanted.source,
        learning_rate=recipe.learning_rate,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        device=wanted.device,
        options=tuple(sorted(recipe.options.items())),
        hyperparameters=Hyperparameters((BETA1, beta2), EPS, WEIGHT_DECAY),
        milestones=recipe.milestones,
        clip_norm=wanted.clip_norm if recipe.task == "ptb" else None,
        precision=wanted.precision,
        compiled=wanted.compiled,
    )


def contents_of(
    experiments: Iterable[Experiment], results: Mapping[Job, RunRecord], failures: Failures
) -> list[dict[str, Any]]:
    """All that a report needs to know of a reproduction."""
    contents = []
    for experiment in experiments:
        network = experiment.key.partition("-beta2-")[0]
        content = content_of(experiment, results, failures)
        contents.append({"key": content.pop("key"), "network": network, **content})
    return contents
