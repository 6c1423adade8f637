"""How far does the last step see? A forecast beside what the next steps really did.

Right after step t the optimizer's last update is Δ = θ(t-1) - θ(t), and s steps later the weights
have moved by G(s) = θ(t) - θ(t+s). A forecast of s steps assumes G(s) = s·Δ. Measured are

- the cosine of Δ and G(s);
- the best multiple, ⟨Δ, G(s)⟩ / ‖Δ‖²: how many Δ lead closest to θ(t+s);
- the error ‖m·Δ - G(s)‖ / ‖G(s)‖ for m = s and for the decaying m = Σ β₁ᵏ (k = 1..s). It is 1 where
  the forecast is as far from θ(t+s) as the weights are that stay where they are.

Δ is observed, so that any optimizer can be measured; it contains decoupled weight decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weightcast.displacement.reach import damped_steps

SAMPLES = 24
"""Forecasts that are made in an epoch, about."""

QUANTITIES = ("cosine", "multiple", "error", "decaying error")


@dataclass
class _Forecast:
    """Made at `step` from the weights there, along the last update."""

    step: int
    weights: Tensor
    update: Tensor


@dataclass
class Foresight:
    """Watches an epoch of training; its weights are copied now and then, and never touched.

    Attributes:
        model: What is trained; after every step it is at its true weights.
        optimizer: For its β₁, or momentum.
        horizons: How many steps ahead, ascending.
        steps: Of the epoch.
    """

    model: nn.Module
    optimizer: Optimizer
    horizons: Sequence[int]
    steps: int
    _step: int = 0
    _before: Tensor | None = None
    _made: list[_Forecast] = field(default_factory=list)
    _found: list[dict[str, list[float]]] = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is found yet."""
        self._found = [{name: [] for name in QUANTITIES} for _ in self.horizons]

    @torch.no_grad()
    def after_step(self) -> None:
        """Compare the forecasts that were made for now, and perhaps make another."""
        self._step += 1
        period = max(1, self.steps // SAMPLES)
        due = {self._step - horizon: n for n, horizon in enumerate(self.horizons)}
        begins, follows = self._step % period == 0, (self._step + 1) % period == 0
        if not (begins or follows or any(made.step in due for made in self._made)):
            return
        weights = torch.cat([p.detach().flatten().double() for p in self.model.parameters()])
        for made in self._made:
            if made.step in due:
                self._compare(due[made.step], made, made.weights - weights)
        self._made = [m for m in self._made if m.step > self._step - self.horizons[-1]]
        if begins and self._before is not None:
            self._made.append(_Forecast(self._step, weights, self._before - weights))
        self._before = weights if follows else None

    def result(self) -> dict[str, Any]:
        """The means over the epoch, a list over the horizons for each quantity, and their number.

        A horizon that the epoch is too short for has None.
        """
        return {
            "samples": [len(found["cosine"]) for found in self._found],
            **{name: [_mean(found[name]) for found in self._found] for name in QUANTITIES},
        }

    def _compare(self, place: int, made: _Forecast, moved: Tensor) -> None:
        """A forecast with how far the weights have moved since."""
        update, horizon = made.update, self.horizons[place]
        size, way = float(update.norm()), float(moved.norm())
        if size == 0 or way == 0:
            return
        product = float(update @ moved)
        found = self._found[place]
        found["cosine"].append(product / (size * way))
        found["multiple"].append(product / size**2)
        group = self.optimizer.param_groups[0]
        has_momentum = "betas" in group or "momentum" in group
        reach = damped_steps(horizon, group) if has_momentum else 0.0
        for name, multiple in (("error", float(horizon)), ("decaying error", reach)):
            found[name].append(float((multiple * update - moved).norm()) / way)


def _mean(values: Sequence[float]) -> float | None:
    return float(f"{sum(values) / len(values):.6g}") if values else None
