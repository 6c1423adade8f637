"""Parameters that others replace while they are predicted."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from weightcast.displacement.rules import Group
from weightcast.moves.batch import Batch, Place
from weightcast.tensors import StateView, plain


def replaced(before: Sequence[Tensor], now: Sequence[Tensor]) -> list[tuple[Tensor, Tensor | None]]:
    """Those that are gone, each with what stands in its place, if anything does."""
    if len(before) == len(now) and all(map(operator.is_, before, now)):
        return []
    present = set(map(id, now))
    pairs = zip(before, now if len(before) == len(now) else [None] * len(before), strict=True)
    return [(old, new) for old, new in pairs if id(old) not in present]


def carry_over(old: Tensor, new: Tensor, theta: Tensor) -> Tensor | None:
    """θ of a new parameter that was made of an old one at θ̂: what differs from it is the truth.

    None if they are of different shapes. It waits for the device, which nobody does every step.
    """
    if new.shape != old.shape or theta.shape != old.shape:
        return None
    with torch.no_grad():
        old, theta = old.to(new), theta.to(new)
        return torch.where(new == old, theta, new)


def give_back(
    moved: Sequence[Batch], used: Sequence[tuple[Group, list[Tensor]]], optimizer: Optimizer | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Put θ into what took the places of predicted parameters, where there is a way to know it.

    Args:
        moved: Those that are predicted.
        used: The groups with the parameters that they had at the forecast.
        optimizer: Whose they are.

    Yields:
        A parameter and what replaced it, where there is none.
    """
    for group, params in used:
        for old, new in replaced(params, group["params"]):
            state = None if optimizer is None or new is None else optimizer.state.get(new)
            for batch in moved:
                numbers = [n for n, p in enumerate(batch.params) if p is old]
                if not numbers or batch.place is not Place.PREDICTED:
                    continue
                theta = None if new is None else _theta(batch, numbers[0], new, state)
                if new is None or theta is None:
                    yield old, new
                else:
                    with torch.no_grad():
                        plain(new).copy_(plain(theta))


def _theta(batch: Batch, number: int, new: Tensor, state: Any) -> Tensor | None:
    """θ of what replaced a parameter, as far as anything tells it."""
    if batch.is_computed:
        computed = batch.theta(number, new)
        return computed if computed.shape == plain(new).shape else None
    kept = batch.saved[number] if batch.saved else batch.operands.sources[number]
    theta = carry_over(batch.params[number], new, kept)
    if theta is None and state and not batch.is_observed:
        delta = batch.rule.formula(StateView([state]), batch.group)
        if delta.shape == plain(new).shape:
            with torch.no_grad():
                theta = (plain(new) + batch.reach * delta) / batch.decay
    return theta
