"""A small regression problem, in float64, and Algorithm 1 by hand on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.oracles.by_hand import ByHand

LR, STEPS, BATCH = 0.05, 2, 8


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """32 inputs of 3 numbers, and their targets of shape (32, 1)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 3, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.sin(x.sum(1, keepdim=True)).to(dtype)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Always the same initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return nn.Sequential(*layers).to(dtype)


def mean_square(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=LR)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """A plain loop over the problem in order."""
    x, y = problem()
    for _ in range(epochs):
        for inputs, targets in zip(x.split(BATCH), y.split(BATCH), strict=True):
            optimizer.zero_grad()
            mean_square(model, inputs, targets).backward()
            optimizer.step()


def trained_by_hand(
    epochs: int,
    *,
    accumulate: int = 1,
    gamma: float = 1.0,
    clip: float | None = None,
    make: Callable[[nn.Module], torch.optim.Optimizer] = adamw,
    decoupled: bool = True,
    steps: float = STEPS,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """The network after `epochs` of Algorithm 1 written out (`tests/oracles/by_hand.py`).

    Args:
        epochs: Passes over the 32 examples in order, in batches of 8.
        accumulate: Micro-batches per step; the loss is divided by it.
        gamma: The learning rate is multiplied by this after every step.
        clip: Total norm to clip the gradients to.
        make: The optimizer.
        decoupled: Its rule is analytic and its weight decay decoupled.
        steps: s.
        dtype: Of weights and data.
    """
    x, y = problem(dtype)
    model = network(dtype)
    optimizer = make(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
    by_hand = ByHand(optimizer, steps, decoupled)
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    for _ in range(epochs):
        for start in range(0, len(batches), accumulate):

            def backward(start: int = start) -> None:
                for inputs, targets in batches[start : start + accumulate]:
                    (mean_square(model, inputs, targets) / accumulate).backward()
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)

            by_hand.iterate(backward)
            scheduler.step()
    return model


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    pairs: Any = zip(a.parameters(), b.parameters(), strict=True)
    return max((p.detach() - q.detach()).abs().max().item() for p, q in pairs)
