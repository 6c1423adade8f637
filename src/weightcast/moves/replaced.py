"""Parameters that others replace while they are predicted."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from weightcast.displacement.rules import Group
from weightcast.moves.passes import Batch, Place
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
                if numbers and batch.place is Place.PREDICTED:
                    saved = batch.saved[numbers[0]]
                    if new is None or not _give_back(batch, old, new, saved, state):
                        yield old, new


def _give_back(batch: Batch, old: Tensor, new: Tensor, saved: Tensor, state: Any) -> bool:
    theta = carry_over(old, new, saved)
    if theta is None and state and not batch.is_observed:
        delta = batch.rule.formula(StateView([state]), batch.group)
        if delta.shape == plain(new).shape:
            with torch.no_grad():
                theta = (plain(new) + batch.reach * delta) / batch.decay
    if theta is None:
        return False
    with torch.no_grad():
        plain(new).copy_(plain(theta))
    return True
