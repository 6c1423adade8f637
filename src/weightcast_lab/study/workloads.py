"""What a study trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from weightcast_lab.methods.method import Hyperparameters, Method
from weightcast_lab.running.jobs import Settings
from weightcast_lab.tasks import DataSource, Task


@dataclass(frozen=True)
class Workload:
    """Something to train.

    Attributes:
        label: Its name in tables.
        task: One of `weightcast_lab.tasks.TASKS`.
        options: What the task's function takes besides the data.
        learning_rate: Usual for AdamW here: the methods' grids lie around it.
        sgd_rate: Usual for SGD with momentum, whose scale is another on every workload.
        batch_size: Examples, or streams of text.
        epochs: Passes over the training data.
        milestones: The learning rate is divided by 10 after so many epochs.
        clip_norm: Gradients are scaled down to this norm, if there is one.
        betas: Of every method that has them; None for each optimizer's own.
        variant_of: The workload with other settings that it is, if it is one: questions are not
            asked of variants, which have a table of their own.
        delay: How many steps late every gradient is applied.
        series: The name that workloads have in common which differ in their delay alone; they are
            asked questions of their own.
        cosine, warmup, averages: As in `train.Settings`.
    """

    label: str
    task: str
    options: Mapping[str, Any]
    learning_rate: float
    sgd_rate: float
    batch_size: int
    epochs: int
    milestones: tuple[int, ...] = ()
    clip_norm: float | None = None
    betas: tuple[float, float] | None = None
    variant_of: str = ""
    delay: int = 0
    series: str = ""
    cosine: bool = False
    warmup: float = 0.0
    averages: tuple[float, ...] = ()

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Of every method."""
        return Hyperparameters(self.betas)

    def takes(self, method: Method) -> bool:
        """Whether the method says anything here: steps in delays need a delay."""
        return self.delay > 0 or not method.in_delays


def _text(setting: str = "", batch_size: int = 32, **more: Any) -> Workload:
    label = "Documentation, LSTM" + (f", {setting}" if setting else "")
    variant_of = "text-lstm" if setting else ""
    part = {"training_tokens": 250_000}
    return Workload(
        label, "text", part, 5e-3, 1.0, batch_size, 6, clip_norm=1.0, variant_of=variant_of, **more
    )


def _resnet(label: str, network: str) -> Workload:
    part = {
        "network": network,
        "width": 0.125,
        "training_images": 2_500,
        "validation_images": 1_000,
    }
    return Workload(label, "cifar10", part, 3e-3, 0.1, 32, 8, milestones=(6,))


WORKLOADS = {
    "digits": Workload("Digits, CNN", "digits", {}, 5e-3, 0.05, 32, 12),
    "text-lstm": _text(),
    "text-transformer": Workload(
        "Documentation, transformer",
        "text",
        {"network": "transformer", "training_tokens": 200_000},
        3e-3,
        0.3,
        16,
        5,
        clip_norm=1.0,
    ),
    "ptb-lstm": Workload(
        "Penn Treebank, LSTM",
        "ptb",
        {
            "units": 128,
            "dropout": 0.2,
            "vocabulary": 2_000,
            "training_tokens": 60_000,
            "validation_tokens": 15_000,
        },
        1e-2,
        2.0,
        20,
        6,
        milestones=(4,),
        clip_norm=0.25,
    ),
    "cifar10-bn": _resnet("CIFAR-10, ResNet-10 with BatchNorm", "resnet10"),
    "cifar10-plain": _resnet("CIFAR-10, ResNet-10 without BatchNorm", "resnet10_plain"),
    "text-lstm-beta1": _text("β₁ = 0.95", betas=(0.95, 0.999)),
    "text-lstm-beta2": _text("β₂ = 0.95", betas=(0.9, 0.95)),
    "text-lstm-batch": _text("batch 128", batch_size=128),
    "smoke-digits": Workload("Digits, CNN, 2 epochs", "digits", {}, 5e-3, 0.05, 64, 2),
    "smoke-batch": Workload("Digits, CNN, 2 epochs, batch 128", "digits", {}, 5e-3, 0.05, 128, 2),
}


DELAYS = (0, 1, 2, 4, 8, 16)


def _late(key: str, workload: Workload) -> dict[str, Workload]:
    return {
        f"{key}-d{delay}": replace(
            workload, label=f"{workload.label}, D = {delay}", series=workload.label, delay=delay
        )
        for delay in DELAYS
    }


def _shorter(key: str, batch_size: int, epochs: int, **part: int) -> Workload:
    """On a smaller part of the data."""
    whole = WORKLOADS[key]
    return replace(whole, options={**whole.options, **part}, batch_size=batch_size, epochs=epochs)


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


NEEDS_DATA = ("ptb", "ptb_characters", "cifar10")


def settings_of(workload: Workload, source: DataSource, device: str) -> Settings:
    """How a workload is trained, for methods that have no learning rate of their own."""
    return Settings(
        task=workload.task,
        source=source if workload.task in NEEDS_DATA else DataSource(),
        learning_rate=workload.learning_rate,
        batch_size=workload.batch_size,
        epochs=workload.epochs,
        device=device,
        options=tuple(sorted(workload.options.items())),
        hyperparameters=workload.hyperparameters,
        milestones=workload.milestones,
        clip_norm=workload.clip_norm,
        delay=workload.delay,
        cosine=workload.cosine,
        warmup=workload.warmup,
        averages=workload.averages,
    )


def tasks_of(settings: Mapping[str, Settings]) -> dict[str, Task]:
    """What is trained, by the same names: what several train is loaded once."""
    each = {one.trained: one for one in settings.values()}
    made = {trained: one.make_task() for trained, one in each.items()}
    return {key: made[one.trained] for key, one in settings.items()}
