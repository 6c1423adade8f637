"""A task that takes no time, and what two equal runs have in common."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from weightcast_lab.results.records import RUNS, RunRecord, read_runs
from weightcast_lab.tasks import Metric, Preset, Task


class LineTask(Task):
    """Fit a line with dropout; `broken` (epoch, batch) returns an infinite loss."""

    title = "A line"
    metric = Metric("error", decimals=3, higher_is_better=False)
    preset = Preset(learning_rate=0.01, batch_size=4, epochs=3, seeds=2)
    facts = {"data": "a line"}  # noqa: RUF012

    def __init__(self, broken: Sequence[int] = ()) -> None:
        self.x = torch.linspace(-1, 1, 20).unsqueeze(1)
        self.y = 2 * self.x + 1
        self.seen: list[list[int]] = []
        self.broken = broken

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def to(self, device: torch.device) -> None:
        self.x, self.y = self.x.to(device), self.y.to(device)

    def batches(self, batch_size: int, generator: torch.Generator) -> Sequence[Any]:
        return torch.randperm(20, generator=generator).split(batch_size)

    def loss(self, model: nn.Module, batch: Any, carried: int | None) -> Any:
        self.seen.append(batch.tolist())
        loss = (model(self.x[batch]) - self.y[batch]).square().mean()
        if len(self.seen) - 1 in self.broken:
            loss = loss * torch.inf
        return loss, (carried or 0) + 1

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        error = (model(self.x) - self.y).square().mean().item()
        return error, error**0.5


def without_seconds(record: RunRecord) -> RunRecord:
    """What two equal runs have in common."""
    history = {name: column for name, column in record.history.items() if name != "seconds"}
    return replace(record, history=history, configuration="", cpu_seconds=None)


def runs_in(folder: Path) -> list[RunRecord]:
    """The finished runs of a folder; none of its lines is damaged."""
    return read_runs(folder / RUNS, pytest.fail)


def finished_in(folder: Path) -> dict[str, RunRecord]:
    """The finished runs of a folder and of all below, by `PATH/METHOD/seed-N`."""
    return {
        (path.parent / record.method / f"seed-{record.seed}").relative_to(folder).as_posix(): record
        for path in folder.rglob(RUNS)
        for record in read_runs(path, pytest.fail)
    }
