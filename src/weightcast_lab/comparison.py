"""From what the user wants to compare to the results file."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from weightcast_lab.errors import LabError
from weightcast_lab.optimizers import Method
from weightcast_lab.report import FORMAT
from weightcast_lab.runner import Comparison
from weightcast_lab.store import Warn, open_folder, to_json, write_atomically
from weightcast_lab.tasks import Task
from weightcast_lab.train import Cell, Settings


def parse_steps(text: str) -> list[float]:
    """The numbers in `1,2,3`.

    Raises:
        LabError: something else is there.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise LabError(
            f"--steps {text!r} is not a list of numbers: write it like 1,2,3 or 0.5,1."
        ) from None


def methods_to_compare(
    optimizers: Sequence[str], baselines: Sequence[str], steps: Sequence[float]
) -> list[Method]:
    """Every optimizer plain and with each of the steps, then the baselines, each once.

    Raises:
        LabError: an optimizer does not exist, or steps are not possible.
    """
    methods = [Method(name, s) for name in optimizers for s in (None, *steps)]
    methods += [Method(name) for name in baselines if name != "none"]
    return list(dict.fromkeys(methods))


def device_named(name: str) -> str:
    """The device to compute on; `auto` is the GPU if there is one.

    Raises:
        LabError: there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise LabError(f"There is no device {name!r}: choose one of auto, cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise LabError("No CUDA device is available here: use --device cpu.")
    return name


def open_comparison(settings: Settings, task: Task, folder: Path) -> Comparison:
    """Make the results folder, or go on in it if it was made with the same configuration.

    Raises:
        LabError: it was not, or it cannot be used, or a setting does not suit the task.
    """
    task.batches(settings.batch_size, torch.Generator())
    return Comparison(settings, folder, open_folder(folder, _configuration(settings, task)))


def finished_results(
    comparison: Comparison, cells: Iterable[Cell], warn: Warn
) -> dict[Cell, dict[str, Any]]:
    """The results that are in the folder already."""
    found = {
        cell: cell.files(comparison.folder, comparison.configuration).load_result(warn)
        for cell in cells
    }
    return {cell: result for cell, result in found.items() if result is not None}


def save_results(
    comparison: Comparison,
    task: Task,
    cells: Sequence[Cell],
    results: dict[Cell, dict[str, Any]],
    command: str,
) -> Path:
    """Write `results.json`: one small file with everything that a report needs."""
    settings = comparison.settings
    methods = dict.fromkeys(cell.method for cell in cells)
    content = {
        "format": FORMAT,
        "title": task.title,
        "command": command,
        "metric": vars(task.metric),
        "learning_rate_is_preset": settings.learning_rate == task.preset.learning_rate,
        "configuration": _configuration(settings, task),
        "methods": [
            {"key": m.key, "label": m.label, "optimizer": m.optimizer, "steps": m.steps}
            for m in methods
        ],
        "seeds": sorted({cell.seed for cell in cells}),
        "runs": [_rounded(results[cell]) for cell in cells if cell in results],
    }
    path = comparison.folder / "results.json"
    write_atomically(path, to_json(content))
    return path


def _configuration(settings: Settings, task: Task) -> dict[str, Any]:
    """Everything that numbers depend on, except method and seed."""
    return {
        "task": settings.task,
        **task.facts,
        "parameters": sum(p.numel() for p in task.build_model().parameters()),
        "learning rate": settings.learning_rate,
        "batch size": settings.batch_size,
        "epochs": settings.epochs,
        "gradient clipping": task.clip_norm,
        "device": settings.device,
        "hardware": _hardware(settings.device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "weightcast": _version("weightcast"),
    }


def _hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _rounded(result: dict[str, Any]) -> dict[str, Any]:
    """The result with seven significant digits: small, readable, and more than anybody needs."""

    def shorten(value: Any) -> Any:
        return float(f"{value:.7g}") if isinstance(value, float) else value

    history = {name: list(map(shorten, column)) for name, column in result["history"].items()}
    history["seconds"] = [round(value, 2) for value in history["seconds"]]
    test = {name: shorten(value) for name, value in result["test"].items()}
    kept = {name: value for name, value in result.items() if name != "configuration"}
    return kept | {"history": history, "test": test}
