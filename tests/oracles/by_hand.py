"""Algorithm 1 around any torch optimizer, by hand: Δ is what the last step really did.

Nothing of weightcast is used. The weights are cloned, moved and put back in plain sight.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def last_displacement(
    optimizer: torch.optim.Optimizer, before: list[Tensor], decoupled: bool
) -> list[Tensor]:
    """(1 - γλ)·θ_before - θ_after of the step just made; γλ counts only if decoupled."""
    displacements = []
    params = [(group, p) for group in optimizer.param_groups for p in group["params"]]
    for (group, p), start in zip(params, before, strict=True):
        decay = (
            float(group.get("lr", 1.0)) * float(group.get("weight_decay", 0.0))
            if decoupled
            else 0.0
        )
        displacements.append(((1 - decay) * start - p.detach()) / float(group.get("lr", 1.0)))
    return displacements


class ByHand:
    """A loop: `iterate(backward)` runs one iteration of Algorithm 1.

    `true` holds θ while the weights are at the forecast.

    Args:
        optimizer: Any torch optimizer.
        steps: s.
        decoupled: Its weight decay is decoupled, and its analytic rule leaves it out of Δ.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: float, decoupled: bool) -> None:
        self.optimizer, self.steps, self.decoupled = optimizer, steps, decoupled
        self.per_lr: list[Tensor] | None = None

    @property
    def params(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @contextmanager
    def forecast(self) -> Iterator[None]:
        self.true = [p.detach().clone() for p in self.params]
        rates = [float(g.get("lr", 1.0)) for g in self.optimizer.param_groups for _ in g["params"]]
        if self.per_lr is not None:
            with torch.no_grad():
                for p, rate, direction in zip(self.params, rates, self.per_lr, strict=True):
                    p.sub_(direction, alpha=self.steps * rate)
        yield
        with torch.no_grad():
            for p, start in zip(self.params, self.true, strict=True):
                p.copy_(start)

    def iterate(self, backward: Callable[[], Any]) -> None:
        with self.forecast():
            self.optimizer.zero_grad()
            backward()
        self.optimizer.step()
        self.per_lr = last_displacement(self.optimizer, self.true, self.decoupled)
