"""Small things that several test modules train."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import weightcast


class Recorder(nn.Module):
    """A two-layer network that records the weights that each forward really used."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, dtype=dtype)
        self.second = nn.Linear(4, 1, dtype=dtype)
        self.seen: list[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(weights(self))
        return self.second(torch.tanh(self.first(x)))


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def data(model: nn.Module, seed: int = 0) -> Tensor:
    p = next(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, generator=generator, dtype=torch.float64).to(p)


def backward(model: nn.Module, seed: int = 0) -> Tensor:
    loss = model(data(model, seed)).square().mean()
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, iterations: int = 3) -> None:
    for seed in range(iterations):
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()


def attached(
    optimizer_class: Any = torch.optim.AdamW,
    *,
    steps: float = 2,
    iterations: int = 3,
    dtype: torch.dtype = torch.float64,
    attach: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Recorder, torch.optim.Optimizer, weightcast.WeightPrediction]:
    """A model trained for some iterations under attach."""
    model = Recorder(dtype)
    optimizer = optimizer_class(model.parameters(), **{"lr": 0.05, **options})
    prediction = weightcast.attach(model, optimizer, steps, **(attach or {}))
    train(model, optimizer, iterations)
    model.seen.clear()
    return model, optimizer, prediction


def forecast(prediction: weightcast.WeightPrediction, model: nn.Module, steps: float) -> list:
    """θ - s·Δ, computed beside the mechanism's own moving."""
    deltas = dict(prediction.displacements())
    return [p.detach() - steps * deltas[p] for p in model.parameters()]


ANALYTIC_AND_OBSERVED: list[dict[str, Any]] = [
    {"optimizer_class": torch.optim.AdamW},
    {"optimizer_class": torch.optim.SGD, "momentum": 0.9},
    {"optimizer_class": torch.optim.NAdam},
    {"optimizer_class": torch.optim.SGD},
    {"optimizer_class": torch.optim.AdamW, "foreach": True},
    {"optimizer_class": torch.optim.Adagrad, "foreach": True},
]


@contextmanager
def nothing_waits_for_the_device() -> Iterator[None]:
    """CUDA raises on any synchronising call."""
    with warnings.catch_warnings(action="ignore"):  # the mode is a prototype, torch says
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def kind_id(kind: dict[str, Any]) -> str:
    return "-".join([kind["optimizer_class"].__name__, *(k for k in kind if "_" not in k)])


def every_parameter(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
