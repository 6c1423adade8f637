"""What the second study trains: every task under every schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from weightcast_lab.running.recipe import Recipe, options_of

AVERAGES = (0.01, 0.03, 0.1)
"""Shares of a run over which weights are averaged: τ of AdamW's EMA, in run lengths."""

WARMUP = 0.05
"""The share of a run in which a cosine's rate rises."""

LENGTHS = (0.9, 0.8, 0.7)
"""Shares of the full length: runs with a cosine of their own, which measure steps saved."""


def _characters(label: str, batch_size: int = 16, **options: Any) -> Recipe:
    return Recipe(
        "ptb_characters",
        learning_rate=3e-3,
        batch_size=batch_size,
        epochs=10,
        options=options_of(**options),
        label=f"Penn Treebank by character, transformer, {label}",
        clip_norm=1.0,
        sgd_rate=0.3,
    )


def _images(label: str, network: str) -> Recipe:
    return Recipe(
        "cifar10",
        learning_rate=3e-3,
        batch_size=32,
        epochs=10,
        options=options_of(
            network=network,
            width=0.125,
            training_images=2_000,
            validation_images=2_000,
            test_images=2_000,
        ),
        label=label,
        sgd_rate=0.1,
    )


TASKS = {
    "long": _characters("7,000 steps"),
    "text-lstm": Recipe(
        "text",
        learning_rate=5e-3,
        batch_size=32,
        epochs=10,
        options=options_of(training_tokens=160_000, drawn=True),
        label="Documentation, LSTM",
        clip_norm=1.0,
        sgd_rate=1.0,
    ),
    "text-transformer": Recipe(
        "text",
        learning_rate=3e-3,
        batch_size=16,
        epochs=10,
        options=options_of(
            network="transformer", training_tokens=200_000, drawn=True, epoch_steps=100
        ),
        label="Documentation, transformer",
        clip_norm=1.0,
        sgd_rate=0.3,
    ),
    "ptb-lstm": Recipe(
        "ptb",
        learning_rate=1e-2,
        batch_size=20,
        epochs=10,
        options=options_of(
            units=128,
            dropout=0.2,
            vocabulary=2_000,
            training_tokens=42_000,
            validation_tokens=30_000,
            test_tokens=40_000,
            drawn=True,
        ),
        label="Penn Treebank by word, LSTM",
        clip_norm=0.25,
        sgd_rate=2.0,
    ),
    "cifar10-bn": _images("CIFAR-10, ResNet-10 with BatchNorm", "resnet10"),
    "cifar10-plain": _images("CIFAR-10, ResNet-10 without BatchNorm", "resnet10_plain"),
}

LONGER = {
    "longer-passes": _characters("28,000 steps of the same text", epoch_steps=2_800),
    "longer-text": _characters(
        "28,000 steps of more text", epoch_steps=2_800, training_tokens=5_000_000
    ),
    "longer-wide": _characters("28,000 steps, twice as wide", epoch_steps=2_800, width=128),
}
"""Four times as long: more passes, more text, or a network that can hold more."""


LARGE = {"large-batch": _characters("batches four times as large", 64, epoch_steps=175)}
"""As much text as in the long task, in a quarter of the steps."""


def _under(task: str, recipe: Recipe, schedule: str) -> tuple[str, Recipe]:
    is_cosine = schedule == "cosine"
    return f"{task}-{schedule}", replace(
        recipe,
        label=f"{recipe.label}, {schedule}",
        cosine=is_cosine,
        warmup=WARMUP if is_cosine else 0.0,
        averages=AVERAGES,
    )


def late(task: str, delay: int) -> str:
    """The key of a task whose gradients come late; its schedule is a cosine."""
    return f"{task}-d{delay}-cosine"


def shorter(key: str, length: float) -> str:
    """The key of a workload's shorter form."""
    return f"{key}-x{length:g}"


WORKLOADS: dict[str, Recipe] = dict(
    _under(task, recipe, schedule)
    for task, recipe in (TASKS | LONGER | LARGE).items()
    for schedule in ("cosine", "constant")
    if schedule == "cosine" or task in TASKS
)
WORKLOADS |= {
    shorter(key, length): replace(
        WORKLOADS[key],
        label=f"{WORKLOADS[key].label}, {length:g} of the length",
        epochs=round(length * WORKLOADS[key].epochs),
    )
    for key in ("long-cosine", "text-lstm-cosine", "text-transformer-cosine")
    for length in LENGTHS
}
DELAYS, LATE_TASKS = (1, 4, 8), ("text-transformer", "cifar10-bn")
WORKLOADS |= {
    late(task, delay): replace(
        WORKLOADS[f"{task}-cosine"],
        label=f"{WORKLOADS[f'{task}-cosine'].label}, D = {delay}",
        delay=delay,
    )
    for task in LATE_TASKS
    for delay in DELAYS
}
"""Every task under every schedule, by key, and two of them with late gradients."""

SHORT = tuple(task for task in TASKS if task != "long")
