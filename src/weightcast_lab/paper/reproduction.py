"""The paper's experiments: from names of networks and a preset to runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weightcast_lab.methods.method import Hyperparameters, exact
from weightcast_lab.paper.protocol import (
    BASELINE,
    BETA1,
    EPS,
    METHODS,
    WEIGHT_DECAY,
    networks_named,
    recipe_at,
)
from weightcast_lab.running.experiment import Experiment, open_experiment
from weightcast_lab.running.folders import open_folder
from weightcast_lab.running.recipe import Recipe

_BETA2 = "-beta2-"


def recipes_of(
    names: Iterable[str], preset: str, beta2s: Sequence[float], clip_norm: float | None
) -> dict[str, Recipe]:
    """A recipe for each network and β₂, by the name of its folder.

    Raises:
        LabError: a name does not exist.
    """
    found = {}
    for beta2 in dict.fromkeys(beta2s):
        for network in networks_named(names):
            recipe = recipe_at(preset, network)
            found[f"{network}{_BETA2}{exact(beta2)}"] = replace(
                recipe,
                label=recipe.label + (f", β₂ = {exact(beta2)}" if len(beta2s) > 1 else ""),
                hyperparameters=Hyperparameters((BETA1, beta2), EPS, WEIGHT_DECAY),
                clip_norm=clip_norm if recipe.task == "ptb" else None,
            )
    return found


def open_reproduction(
    recipes: Mapping[str, Recipe], preset: str, seeds: int, folder: Path
) -> list[Experiment]:
    """One experiment for each recipe, in a folder of its own in `folder`.

    Raises:
        LabError: data cannot be used, or the folder holds something else.
    """
    open_folder(folder, {"kind": "reproduction", "preset": preset})
    return [
        open_experiment(
            key,
            recipe,
            (*METHODS, BASELINE),
            range(seeds),
            folder / key,
            recipe.make_task(),
            recipe.label,
            network=key.partition(_BETA2)[0],
        )
        for key, recipe in recipes.items()
    ]
