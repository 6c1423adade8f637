"""What is trained on what, and how it is judged.

A new task is a subclass of `Task` and a function that makes it from a `DataSource` (or the class
itself, if its constructor takes one): in a file of the user's own, `--task path/to/file.py:name`,
or in a module here with one line in `TASKS`. Everything else (the loop, seeds, checkpoints,
statistics, reports) works by itself.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from weightcast_lab.errors import LabError, unknown_name
from weightcast_lab.plugins import foreign, is_own, load
from weightcast_lab.tasks.base import DataSource, Metric, Preset, Task

__all__ = [
    "TASKS",
    "DataSource",
    "Metric",
    "Preset",
    "Task",
    "carries_data",
    "make_task",
    "parse_options",
]

TASKS = {
    "small_text": "weightcast_lab.tasks.docs_text:small_text",
    "digits": "weightcast_lab.tasks.digits:digits",
    "text": "weightcast_lab.tasks.docs_text:docs_text",
    "ptb": "weightcast_lab.tasks.ptb:ptb",
    "ptb_characters": "weightcast_lab.tasks.ptb_characters:ptb_characters",
    "cifar10": "weightcast_lab.tasks.cifar10:cifar10",
}
"""Task name -> `module:function`; the function takes a `DataSource` and makes the task."""

_CARRY_DATA = ("digits", "text")


def carries_data(name: str) -> bool:
    """Whether a task of the laboratory's needs no data of the user's."""
    return name in _CARRY_DATA


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
                f"--set {word}: the default of {option} must be a number, a text, True or False."
            )
        read, what = _KINDS[kind]
        try:
            options[option] = read(value)
        except (KeyError, ValueError):
            raise LabError(
                f"--set {word}: {option} takes {what}, for example "
                f"{option}={1000 if known[option] is None else known[option]}."
            ) from None
    return options


_KINDS: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: (lambda word: {"true": True, "false": False}[word.lower()], "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    str: (str, "a text"),
}
"""The type of an option's default: how a word is read, and what it must be."""
