"""What is compared: optimizers by name, plain or predicted some steps ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

import weightcast
from weightcast_lab.errors import LabError, unknown_name

# name -> (label, constructor that takes parameters and lr); everything else is torch's default.
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
class Method:
    """An optimizer, plain (`steps=None`) or with its weights predicted `steps` steps ahead.

    Raises:
        LabError: there is no such optimizer, or it cannot be predicted so far.
    """

    optimizer: str
    steps: float | None = None

    def __post_init__(self) -> None:
        """Check everything before anything runs."""
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        if self.steps is not None:
            try:
                weightcast.WeightPrediction(self.steps)
            except ValueError as error:
                raise LabError(f"--steps {self.steps:g} is not possible: {error}") from None

    @property
    def key(self) -> str:
        """A name for files: `adamw`, `adamw-s3`."""
        return self.optimizer if self.steps is None else f"{self.optimizer}-s{self.steps:g}"

    @property
    def label(self) -> str:
        """A name for people: `AdamW`, `AdamW s=3`."""
        label = OPTIMIZERS[self.optimizer][0]
        return label if self.steps is None else f"{label} s={self.steps:g}"

    def attach(self, model: nn.Module, learning_rate: float) -> Optimizer:
        """The optimizer of the model's parameters, with weight prediction on if wanted."""
        optimizer = OPTIMIZERS[self.optimizer][1](model.parameters(), lr=learning_rate)
        if self.steps is not None:
            weightcast.attach(model, optimizer, steps=self.steps)
        return optimizer
