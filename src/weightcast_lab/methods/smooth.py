"""The long form of a forecast: walk, and look ahead, along a slow average of displacements.

With Δ what any optimizer's own step subtracts, evaluated at φ = θ - s·M,

    M ← β·M + (1-β)·Δ,        θ ← θ - M.

It is GPA (Meta, arXiv 2512.17131) with μ_x = β and μ_y = 1 - s·(1-β)/β, and EMA-Nesterov
(arXiv 2605.25395) with β = g + b - g·b, s = β/(1-g) and learning rates 1/(1-b) times as large. On
SGD it is SGD with momentum β. `weightcast.attach(model, Smooth(...), steps=s)` looks ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

import weightcast

_AVERAGE = "average_displacement"


class Smooth(Optimizer):
    """Walks a slow average of the displacements of another optimizer.

    Parameter groups and state are the other's; so is the learning rate's schedule.

    Args:
        base: The optimizer whose displacements are averaged.
        beta: β; the average remembers about 1/(1-β) steps.
        ahead: s of the forecast, if `base` is to decay weights where the gradient was taken, at
            θ - s·M, as GPA and EMA-Nesterov do; else it decays them at θ.
    """

    def __init__(self, base: Optimizer, beta: float, ahead: float = 0.0) -> None:
        super().__init__(base.param_groups, dict(base.defaults))
        self.base, self.beta, self.ahead = base, beta, ahead
        self.state = base.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What is loaded is the other's too."""
        super().__setstate__(state)  # type: ignore[no-untyped-call, unused-ignore]
        self.base.__setstate__({"state": self.state, "param_groups": self.param_groups})  # type: ignore[no-untyped-call, unused-ignore]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The other optimizer's step, of which only the average is kept."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        thetas = [p.clone() for p in params]
        for p in params:
            if _AVERAGE in self.state.get(p, {}):
                p.sub_(self.state[p][_AVERAGE], alpha=self.ahead)
        starts = [p.clone() for p in params]
        self.base.step()
        for p, theta, start in zip(params, thetas, starts, strict=True):
            # only now: an empty state tells many optimizers to initialise it
            average = self.state[p].setdefault(_AVERAGE, torch.zeros_like(p))
            average.lerp_(start - p, 1 - self.beta)
            p.copy_(theta - average)
        return loss


@weightcast.register_rule(Smooth, foreach=True)
def smooth(state: Mapping[str, Any], group: dict[str, Any]) -> Any:
    """Δ = M."""
    return state[_AVERAGE]
