"""What a study trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from weightcast_lab.methods.method import Hyperparameters
from weightcast_lab.running.recipe import Recipe, options_of


def _text(variant: str = "", batch_size: int = 32, **more: Any) -> Recipe:
    return Recipe(
        "text",
        learning_rate=5e-3,
        batch_size=batch_size,
        epochs=6,
        options=options_of(training_tokens=250_000),
        label="Documentation, LSTM" + (f", {variant}" if variant else ""),
        clip_norm=1.0,
        sgd_rate=1.0,
        variant_of="text-lstm" if variant else "",
        **more,
    )


def _resnet(label: str, network: str) -> Recipe:
    return Recipe(
        "cifar10",
        learning_rate=3e-3,
        batch_size=32,
        epochs=8,
        options=options_of(
            network=network, width=0.125, training_images=2_500, validation_images=1_000
        ),
        label=label,
        milestones=(6,),
        sgd_rate=0.1,
    )


_DIGITS = Recipe("digits", 5e-3, batch_size=32, epochs=12, label="Digits, CNN", sgd_rate=0.05)
_SMOKE = replace(_DIGITS, batch_size=64, epochs=2, label="Digits, CNN, 2 epochs")

WORKLOADS = {
    "digits": _DIGITS,
    "text-lstm": _text(),
    "text-transformer": Recipe(
        "text",
        learning_rate=3e-3,
        batch_size=16,
        epochs=5,
        options=options_of(network="transformer", training_tokens=200_000),
        label="Documentation, transformer",
        clip_norm=1.0,
        sgd_rate=0.3,
    ),
    "ptb-lstm": Recipe(
        "ptb",
        learning_rate=1e-2,
        batch_size=20,
        epochs=6,
        options=options_of(
            units=128,
            dropout=0.2,
            vocabulary=2_000,
            training_tokens=60_000,
            validation_tokens=15_000,
        ),
        label="Penn Treebank, LSTM",
        milestones=(4,),
        clip_norm=0.25,
        sgd_rate=2.0,
    ),
    "cifar10-bn": _resnet("CIFAR-10, ResNet-10 with BatchNorm", "resnet10"),
    "cifar10-plain": _resnet("CIFAR-10, ResNet-10 without BatchNorm", "resnet10_plain"),
    "text-lstm-beta1": _text("β₁ = 0.95", hyperparameters=Hyperparameters((0.95, 0.999))),
    "text-lstm-beta2": _text("β₂ = 0.95", hyperparameters=Hyperparameters((0.9, 0.95))),
    "text-lstm-batch": _text("batch 128", batch_size=128),
    "smoke-digits": _SMOKE,
    "smoke-batch": replace(_SMOKE, batch_size=128, label="Digits, CNN, 2 epochs, batch 128"),
}
"""The learning rate is usual for AdamW: the methods' grids lie around it."""


DELAYS = (0, 1, 2, 4, 8, 16)


def _late(key: str, recipe: Recipe) -> dict[str, Recipe]:
    return {
        f"{key}-d{delay}": replace(
            recipe, label=f"{recipe.label}, D = {delay}", series=recipe.label, delay=delay
        )
        for delay in DELAYS
    }


def _shorter(key: str, batch_size: int, epochs: int, **part: int) -> Recipe:
    """The same on a smaller part of the data."""
    recipe = WORKLOADS[key].with_options(**part)
    return replace(recipe, batch_size=batch_size, epochs=epochs)


LATE = {
    **_late("digits", WORKLOADS["digits"]),
    **_late("text-lstm", _shorter("text-lstm", 16, 5, training_tokens=80_000)),
    **_late("text-transformer", _shorter("text-transformer", 16, 4, training_tokens=80_000)),
    **_late(
        "cifar10",
        _shorter("cifar10-bn", 32, 8, training_images=1_200, validation_images=500),
    ),
}
"""Four tasks at every delay, shorter still than the others."""


WORKLOADS |= LATE

SIX = ("digits", "text-lstm", "text-transformer", "ptb-lstm", "cifar10-bn", "cifar10-plain")
