"""What `weightcast foresight` measures: recipes of the study, and two with one thing changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightcast_lab.methods.method import Hyperparameters, Method, methods_named
from weightcast_lab.running.experiment import Experiment, open_experiment
from weightcast_lab.running.folders import open_folder
from weightcast_lab.running.recipe import Recipe, tasks_of
from weightcast_lab.study.workloads import SIX, WORKLOADS
from weightcast_lab.tasks import DataSource

HORIZONS = (1, 2, 3, 5, 8, 16)
"""How many steps ahead."""

SEEDS = (0, 1)

VARIED = ("text-lstm", "cifar10-bn")
BETA1S = (0.8, 0.95, 0.98)
RATE_MULTIPLES = (0.3, 3.0)
BATCH_MULTIPLES = (0.25, 4.0)


@dataclass(frozen=True)
class Variation:
    """A recipe of the study as it is (`varied` is empty), or with one thing changed.

    `value` is what that thing is set to, and `base` the key of the recipe.
    """

    key: str
    base: str
    recipe: Recipe
    methods: tuple[Method, ...]
    varied: str = ""
    value: float | None = None


def variations() -> tuple[Variation, ...]:
    """All that is measured: every recipe, then the variations of two of them."""
    return (*map(as_it_is, SIX), *(v for base in VARIED for v in variations_of(base)))


def as_it_is(base: str) -> Variation:
    """The recipe itself, for AdamW, its forecast, and SGD."""
    recipe = replace(WORKLOADS[base], horizons=HORIZONS)
    sgd = Method("sgd", learning_rate=recipe.sgd_rate)
    return Variation(base, base, recipe, (*methods_named("adamw adamw-s3"), sgd))


def variations_of(base: str) -> list[Variation]:
    """The recipe with another β₁, another learning rate, or another batch size, for AdamW."""
    usual = replace(WORKLOADS[base], horizons=HORIZONS)

    def changed(name: str, value: float, **change: Any) -> Variation:
        label = f"{usual.label}, {name} {value:g}"
        recipe = replace(usual, label=label, **change)
        key = f"{base}-{name.replace(' ', '-')}-{value:g}"
        return Variation(key, base, recipe, (Method("adamw"),), name, value)

    betas = [Hyperparameters((beta1, 0.999)) for beta1 in BETA1S]
    rates = [float(f"{multiple * usual.learning_rate:.3g}") for multiple in RATE_MULTIPLES]
    sizes = [round(multiple * usual.batch_size) for multiple in BATCH_MULTIPLES]
    return [
        *(changed("beta1", b1, hyperparameters=h) for b1, h in zip(BETA1S, betas, strict=True)),
        *(changed("learning rate", rate, learning_rate=rate) for rate in rates),
        *(changed("batch size", size, batch_size=size) for size in sizes),
    ]


def open_foresight(
    source: DataSource, device: str, folder: Path, seeds: int | None = None
) -> list[Experiment]:
    """One experiment a variation, each in a folder of its own in `folder`.

    Raises:
        LabError: data cannot be used, or the folder holds something else.
    """
    open_folder(folder, {"kind": "foresight", "horizons": list(HORIZONS)})
    every = {v.key: v for v in variations()}
    recipes = {key: v.recipe.placed(source, device) for key, v in every.items()}
    tasks = tasks_of(recipes)
    return [
        open_experiment(
            key,
            recipes[key],
            v.methods,
            SEEDS if seeds is None else range(seeds),
            folder / key,
            tasks[key],
            v.recipe.label,
            workload=WORKLOADS[v.base].label,
            base=v.base,
            varied=v.varied,
            value=v.value,
        )
        for key, v in every.items()
    ]
