"""What is here, what would be used, and why."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from weightcast.kernels import build
from weightcast_lab.environment import NOT_INSTALLED, hardware, installed_version
from weightcast_lab.errors import LabError
from weightcast_lab.tasks import DataSource, make_task

OPTIONAL = {
    "typer": "every command but this one: install weightcast[lab]",
    "torchvision": "the networks for CIFAR-10: reinstall weightcast[lab]",
    "ray": "--on ray: install weightcast[ray]",
    "pytorch_optimizer": "Lion, Muon and Lookahead: install weightcast[study]",
    "schedulefree": "schedule-free AdamW: install weightcast[study]",
}
"""Packages that some commands need, and what for."""


@dataclass(frozen=True)
class Finding:
    """Something that was looked at; `is_good` is None where nothing is wrong or needed."""

    topic: str
    is_good: bool | None
    text: str


MARKS = {True: "✓", False: "✗", None: "–"}
"""How a finding is shown."""


def examine(folder: Path | None = None) -> Iterator[Finding]:
    """Everything that matters for speed and results; with a folder, whether its data are whole."""
    python = platform.python_version()
    yield Finding("weightcast", True, f"{installed_version('weightcast')}, on Python {python}")
    yield Finding("torch", True, str(torch.__version__))
    threads = torch.get_num_threads()
    count = f"{threads} thread{'s' * (threads > 1)}"
    yield Finding("CPU", True, f"{hardware('cpu')}, {count}")
    yield _kernels("cpu", "Step and forecast on the CPU", "in C, " + _origin())
    yield from _gpu()
    for package, purpose in OPTIONAL.items():
        yield _package(package, purpose)
    for task in ("cifar10", "ptb"):
        yield _data(task, folder)


def _origin() -> str:
    return "from the wheel" if build.LIBRARY.exists() else "compiled here on first use"


def _kernels(name: str, topic: str, text: str) -> Finding:
    try:
        importlib.import_module(f"weightcast.kernels.{name}")
    except ImportError as error:
        return Finding(topic, False, f"in plain PyTorch, which is slower: {error}")
    return Finding(topic, True, text)


def _gpu() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        yield Finding("GPU", None, "none here: --device auto computes on the CPU")
        return
    yield Finding("GPU", True, hardware("cuda"))
    found = _kernels("triton", "Step and forecast on the GPU", "in Triton")
    if found.is_good:
        p = torch.zeros(1, device="cuda")
        triton = importlib.import_module("weightcast.kernels.triton")
        if not triton.handles(p, [p]):
            text = "in plain PyTorch, which is slower: Triton does not work on it"
            found = Finding(found.topic, False, text)
    yield found


def _package(package: str, purpose: str) -> Finding:
    found = installed_version(package)
    if found != NOT_INSTALLED:
        return Finding(package, True, found)
    return Finding(package, None, f"{found}; needed for {purpose}")


def _data(task: str, folder: Path | None) -> Finding:
    topic = f"Data of the task {task}"
    if folder is None:
        return Finding(topic, None, "not looked for: --data FOLDER says where")
    try:
        return Finding(topic, True, make_task(task, DataSource(folder)).title)
    except ModuleNotFoundError as error:
        return Finding(topic, None, f"not looked at, without {error.name}: install weightcast[lab]")
    except LabError as error:
        return Finding(topic, False, str(error))
