"""What is trained on what, and how it is judged.

A new task is a subclass of `Task` and a function that makes it from a `DataSource` (or the class
itself, if its constructor takes one): in a file of the user's own, `--task path/to/file.py:name`,
or in a module here with one line in `TASKS`. Everything else (the loop, seeds, checkpoints,
statistics, reports) works by itself.
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightcast_lab.errors import LabError, unknown_name
from weightcast_lab.plugins import foreign, is_own, load


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


TASKS = {
    "digits": "weightcast_lab.tasks.digits:digits",
    "text": "weightcast_lab.tasks.docs_text:docs_text",
    "ptb": "weightcast_lab.tasks.ptb:ptb",
    "ptb_characters": "weightcast_lab.tasks.ptb_characters:ptb_characters",
    "cifar10": "weightcast_lab.tasks.cifar10:cifar10",
}
"""Task name -> `module:function`; the function takes a `DataSource` and makes the task."""


def _maker(name: str) -> Callable[..., Task]:
    if is_own(name):
        return load(name, "task")
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    module, _, function = TASKS[name].partition(":")
    make: Callable[..., Task] = getattr(importlib.import_module(module), function)
    return make


def make_task(name: str, source: DataSource, **options: Any) -> Task:
    """The task of that name, with its data loaded.

    Args:
        name: A key of `TASKS`, or `path/to/file.py:name` of one of the user's own.
        source: Where the data are.
        options: Further arguments of the task's function.

    Raises:
        LabError: there is no such task, or its data or an option cannot be used.
    """
    make = _maker(name)
    with foreign(f"The task {name} cannot be made"):
        task = make(source, **options)
    missing = [each for each in inspect.get_annotations(Task) if not hasattr(task, each)]
    if not isinstance(task, Task) or missing:
        lacks = f"lacks {', '.join(missing)}" if isinstance(task, Task) else "makes no Task"
        raise LabError(f"{name} {lacks}: see weightcast_lab.tasks.Task.")
    for attribute, kind in (("title", str), ("metric", Metric), ("preset", Preset)):
        if not isinstance(getattr(task, attribute), kind):
            raise LabError(f"{name}: {attribute} must be a {kind.__name__}.")
    return task


def parse_options(name: str, words: Sequence[str]) -> dict[str, Any]:
    """The options of a task, from words like `width=0.25`.

    Raises:
        LabError: the task has no such option, or not such a value.
    """
    known = {
        option: parameter.default
        for option, parameter in inspect.signature(_maker(name)).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    options: dict[str, Any] = {}
    for word in words:
        option, _, value = word.partition("=")
        if not known:
            raise LabError(f"The task {name!r} has no options: leave out --set {word}.")
        if option not in known:
            raise unknown_name(f"option of the task {name!r}", option, known)
        kind = int if known[option] is None else type(known[option])
        if kind not in _KINDS:
            raise LabError(
                f"--set {word} is not possible: the default of {option} must be a number, a text, "
                "True or False."
            )
        read, what = _KINDS[kind]
        try:
            options[option] = read(value)
        except (KeyError, ValueError):
            raise LabError(
                f"--set {word} is not possible: {option} takes {what}, for example "
                f"{option}={1000 if known[option] is None else known[option]}."
            ) from None
    return options


_KINDS: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: (lambda word: {"true": True, "false": False}[word.lower()], "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "a text"),
}
"""Of an option's default: how a word is read, and what it must be."""


def refuse_source(name: str, source: DataSource) -> None:
    """For tasks that carry their data.

    Raises:
        LabError: `--data`, `--download` or `--any-text` was given.
    """
    if source != DataSource():
        raise LabError(
            f"The task {name!r} carries its own data: leave out --data, --download and --any-text."
        )
