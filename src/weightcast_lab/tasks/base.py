"""What a task is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightcast_lab.errors import LabError


@dataclass(frozen=True)
class Metric:
    """What the validation loss means to people."""

    name: str
    decimals: int
    higher_is_better: bool


@dataclass(frozen=True)
class Preset:
    """Defaults of a task; the learning rate is one that suits plain AdamW.

    Gradients are scaled down to the norm `clip_norm`, if there is one.
    """

    learning_rate: float
    batch_size: int
    epochs: int
    seeds: int
    clip_norm: float | None = None


@dataclass(frozen=True)
class DataSource:
    """Where a task that does not carry its data finds it.

    `any_text` admits a text other than the published one; `download` fetches what is missing.
    """

    folder: Path | None = None
    any_text: bool = False
    download: bool = False


NO_SOURCE = DataSource()
"""What a task is given that carries its data."""


class Task(ABC):
    """Data, model, loss and metric. Subclasses set the attributes in `__init__`.

    `facts` identifies data and model (JSON values): results are comparable if the facts are equal.
    A batch is whatever `batches` yields and `loss` understands.
    """

    title: str
    metric: Metric
    preset: Preset
    facts: dict[str, Any]

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A new model; its weights come from torch's global random generator."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the data to the device."""

    @abstractmethod
    def batches(self, batch_size: int, generator: torch.Generator) -> Sequence[Any]:
        """One epoch of mini-batches, in an order drawn from the (CPU) generator, if in any.

        Raises:
            LabError: `batch_size` does not suit the data.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, carried: Any) -> tuple[Tensor, Any]:
        """The mean loss of a batch, and what the next batch of the epoch is to be given.

        `carried` is None at the first batch of an epoch: a recurrent state, for example.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """Mean loss and metric on the validation data; the model is in evaluation mode."""

    def test(self, model: nn.Module) -> dict[str, float]:
        """Further measurements at the end of a run, by name."""
        return {}

    def test_loss(self, model: nn.Module) -> float | None:
        """Mean loss on data that choose nothing, if the task keeps such data apart."""
        return None


def refuse_source(name: str, source: DataSource) -> None:
    """Refuse a source for a task that carries its data.

    Raises:
        LabError: `--data`, `--download` or `--any-text` was given.
    """
    if source != NO_SOURCE:
        raise LabError(
            f"The task {name!r} carries its own data: leave out --data, --download and --any-text."
        )
