"""What is compared: optimizers by name, plain or predicted some steps ahead."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import weightcast
from weightcast_lab.errors import LabError, unknown_name

# name -> (label, constructor that takes parameters and lr); all else is torch's default, unless
# `Hyperparameters` says otherwise.
# NAdamW decays as AdamW does by default, so that the two differ in the look-ahead only.
OPTIMIZERS: dict[str, tuple[str, Callable[..., Optimizer]]] = {
    "adamw": ("AdamW", torch.optim.AdamW),
    "nadamw": (
        "NAdamW",
        partial(torch.optim.NAdam, weight_decay=0.01, decoupled_weight_decay=True),
    ),
    "adam": ("Adam", torch.optim.Adam),
    "radam": ("RAdam", torch.optim.RAdam),
    "sgd": ("SGD", partial(torch.optim.SGD, momentum=0.9)),
    "nesterov": ("Nesterov", partial(torch.optim.SGD, momentum=0.9, nesterov=True)),
    "rmsprop": ("RMSprop", torch.optim.RMSprop),
    "adagrad": ("Adagrad", torch.optim.Adagrad),
}


@dataclass(frozen=True)
class Hyperparameters:
    """For every optimizer that takes them; None leaves the optimizer's default.

    Raises:
        LabError: a value is not possible.
    """

    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        """Check everything before anything runs."""
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise LabError(f"Betas {self.betas} are not possible: each must be in [0, 1).")
        for name in ("eps", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise LabError(f"{name} {value:g} is not possible: it must be 0 or more.")

    def taken_by(self, constructor: Callable[..., Optimizer]) -> dict[str, Any]:
        """Those that are set and that the optimizer has."""
        known = inspect.signature(constructor).parameters
        return {name: v for name, v in vars(self).items() if v is not None and name in known}


NO_HYPERPARAMETERS = Hyperparameters()


@dataclass(frozen=True)
class Method:
    """An optimizer, plain (`steps=None`) or with its weights predicted `steps` steps ahead.

    It may have a learning rate of its own.

    Raises:
        LabError: there is no such optimizer, it cannot be predicted so far, or the learning rate
            is not possible.
    """

    optimizer: str
    steps: float | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        """Check everything before anything runs."""
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        if self.steps is not None:
            try:
                weightcast.WeightPrediction(self.steps)
            except ValueError as error:
                raise LabError(f"--steps {self.steps:g} is not possible: {error}") from None
        if self.learning_rate is not None:
            check_learning_rate(self.learning_rate)

    @property
    def name(self) -> str:
        """What it is, whatever its learning rate: `adamw`, `adamw-s3`."""
        return self.optimizer if self.steps is None else f"{self.optimizer}-s{self.steps:g}"

    @property
    def key(self) -> str:
        """A name for files: `adamw`, `adamw-s3`, `adamw-s3-lr0.01`."""
        own = "" if self.learning_rate is None else f"-lr{self.learning_rate:g}"
        return self.name + own

    @property
    def label(self) -> str:
        """A name for people: `AdamW`, `AdamW s=3`, `AdamW s=3, lr 0.01`."""
        label = OPTIMIZERS[self.optimizer][0]
        own = "" if self.learning_rate is None else f", lr {self.learning_rate:g}"
        return label + ("" if self.steps is None else f" s={self.steps:g}") + own

    def attach(
        self,
        model: nn.Module,
        learning_rate: float,
        hyperparameters: Hyperparameters = NO_HYPERPARAMETERS,
    ) -> Optimizer:
        """The optimizer of the model's parameters, with weight prediction on if wanted.

        `learning_rate` is for those that have none of their own.
        """
        constructor = OPTIMIZERS[self.optimizer][1]
        lr = learning_rate if self.learning_rate is None else self.learning_rate
        optimizer = constructor(model.parameters(), lr=lr, **hyperparameters.taken_by(constructor))
        if self.steps is not None:
            weightcast.attach(model, optimizer, steps=self.steps)
        return optimizer


def check_learning_rate(value: float) -> None:
    """Refuse what no training can use.

    Raises:
        LabError: it is not positive and finite.
    """
    if not 0 < value < math.inf:
        raise LabError(f"--lr {value:g} is not possible: it must be positive and finite.")
