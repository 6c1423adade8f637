"""How a network is trained, whatever the method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from weightcast_lab.errors import LabError
from weightcast_lab.methods.method import NO_HYPERPARAMETERS, Hyperparameters, Method
from weightcast_lab.tasks import DataSource, Task, carries_data, make_task
from weightcast_lab.tasks.base import NO_SOURCE

Options = tuple[tuple[str, Any], ...]


def options_of(**options: Any) -> Options:
    """Options of a task, in the order in which they are given."""
    return tuple(options.items())


@dataclass(frozen=True)
class Recipe:
    """What all runs of an experiment have in common, but their methods and seeds.

    Attributes:
        task: A key of `tasks.TASKS`, or `path/to/file.py:name`.
        learning_rate: Of the methods that have none of their own.
        batch_size: Examples, or streams of text, per step.
        epochs: Passes over the data.
        options: Further arguments of the task's function.
        label: Its name in tables.
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
        sgd_rate: Usual for SGD with momentum, whose scale is another on every task.
        variant_of: The key of the recipe of which this is a variant, if it is one.
        series: The name that recipes have in common which differ in their delay alone.
        source: Where the task's data are.
        device: `cpu` or `cuda`.

    Raises:
        LabError: a number is not possible.
    """

    task: str
    learning_rate: float
    batch_size: int
    epochs: int
    options: Options = ()
    label: str = ""
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
    sgd_rate: float = 0.0
    variant_of: str = ""
    series: str = ""
    source: DataSource = NO_SOURCE
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the numbers before anything runs."""
        if self.delay < 0:
            raise LabError(f"--delay must be 0 or more, got {self.delay}.")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise LabError(f"--clip must be positive and finite, got {self.clip_norm:g}.")

    def with_options(self, **options: Any) -> Recipe:
        """The same with other options of its task, or more."""
        return replace(self, options=tuple((dict(self.options) | options).items()))

    def placed(self, source: DataSource, device: str) -> Recipe:
        """The same on this device, with these data unless the task carries its own."""
        if carries_data(self.task):
            source = NO_SOURCE
        return replace(self, source=source, device=device)

    def takes(self, method: Method) -> bool:
        """Whether the method says anything here: steps in delays need a delay."""
        return self.delay > 0 or not method.in_delays

    @property
    def trained(self) -> tuple[Any, ...]:
        """Equal for recipes that train the same task."""
        return self.task, self.source, self.options

    def make_task(self) -> Task:
        """The task, with its data loaded.

        Raises:
            LabError: its data or an option cannot be used.
        """
        return make_task(self.task, self.source, **dict(self.options))


def tasks_of(recipes: Mapping[str, Recipe]) -> dict[str, Task]:
    """What is trained, by the same names: what several train is loaded once."""
    each = {one.trained: one for one in recipes.values()}
    made = {trained: one.make_task() for trained, one in each.items()}
    return {key: made[one.trained] for key, one in recipes.items()}
