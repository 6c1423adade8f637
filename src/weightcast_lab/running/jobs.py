"""A run that is to be computed: what, how, and where it is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightcast_lab.errors import LabError
from weightcast_lab.methods.method import NO_HYPERPARAMETERS, Hyperparameters, Method
from weightcast_lab.running.folders import RunFiles
from weightcast_lab.tasks import DataSource, Task, make_task


@dataclass(frozen=True)
class Settings:
    """What all runs of a comparison have in common.

    Attributes:
        task: A key of `tasks.TASKS`, or `path/to/file.py:name`.
        source: Where its data are.
        learning_rate: Of the methods that have none of their own.
        batch_size: Examples, or streams of text, per step.
        epochs: Passes over the data.
        device: `cpu` or `cuda`.
        options: Further arguments of the task's function, as pairs.
        hyperparameters: Of every optimizer that takes them.
        milestones: The learning rate is divided by 10 after so many epochs.
        clip_norm: Gradients are scaled down to this norm; None leaves them.
        precision: `fp32`; `tf32` (matrix products and convolutions on a GPU); `bf16` (autocast).
        compiled: Whether `torch.compile` compiles the model.
        horizons: Forecasts so many steps ahead are compared with what came; see `foresight`.
        delay: D, in steps: the gradient that a step applies was computed D steps before.
        cosine: Whether the learning rate rises to its value in the first steps, in proportion, and
            then falls to zero by half a cosine; step by step, in place of milestones.
        warmup: The share of all steps in which it rises.
        averages: Shares of the run: the final loss is read at averages of the weights over each,
            and at θ and θ̂; see `readings`.

    Raises:
        LabError: a number is not possible.
    """

    task: str
    source: DataSource
    learning_rate: float
    batch_size: int
    epochs: int
    device: str
    options: tuple[tuple[str, Any], ...] = ()
    hyperparameters: Hyperparameters = NO_HYPERPARAMETERS
    milestones: tuple[int, ...] = ()
    clip_norm: float | None = None
    precision: str = "fp32"
    compiled: bool = False
    horizons: tuple[int, ...] = ()
    delay: int = 0
    cosine: bool = False
    warmup: float = 0.0
    averages: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers before anything runs."""
        if self.delay < 0:
            raise LabError(f"--delay {self.delay} is not possible: it must be 0 or more.")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise LabError(f"--clip must be positive and finite, got {self.clip_norm:g}.")

    @property
    def trained(self) -> tuple[Any, ...]:
        """Equal for settings that train the same task."""
        return self.task, self.source, self.options

    def make_task(self) -> Task:
        """The task, with its data loaded.

        Raises:
            LabError: its data or an option cannot be used.
        """
        return make_task(self.task, self.source, **dict(self.options))


@dataclass(frozen=True)
class Cell:
    """One run: a method and a seed."""

    method: Method
    seed: int

    @property
    def label(self) -> str:
        """A name for people."""
        return f"{self.method.label}, seed {self.seed}"

    def files(self, folder: Path, configuration: str) -> RunFiles:
        """Where the run lives in the folder of its comparison."""
        return RunFiles(folder, self.method.key, self.seed, configuration)


@dataclass(frozen=True)
class Job:
    """A run that is to be computed: what, how, and where it is kept."""

    cell: Cell
    settings: Settings
    files: RunFiles
    experiment: str = ""

    @property
    def label(self) -> str:
        """A name for people."""
        return f"{self.experiment}: {self.cell.label}" if self.experiment else self.cell.label
