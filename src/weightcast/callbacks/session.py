"""What the callbacks share: weight prediction from the beginning of training to its end."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from weightcast import WeightPrediction, attach


class Session:
    """The predictions of one training run, attached together and detached together.

    Args:
        settings: The keyword arguments of `weightcast.attach`.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.predictions: list[WeightPrediction] = []
        self._optimizers: list[Optimizer] = []

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy belongs to no run."""
        return partial(Session, **self.settings), ()

    def begin(self, model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        """Attach to each optimizer; what an interrupted run left behind is detached first."""
        self.end()
        for optimizer in optimizers:
            self.predictions.append(attach(model, optimizer, **self.settings))
            self._optimizers.append(optimizer)

    def restore(self) -> None:
        """The weights are θ until the next training forward."""
        for prediction in self.predictions:
            prediction.restore()

    def end(self) -> None:
        """The weights are θ, and every hook is gone. Does nothing if it has ended already."""
        while self.predictions:
            self.predictions.pop().detach()
        self._optimizers.clear()

    def numbers(self) -> dict[str, float]:
        """What is worth a log: the steps, and the length ‖θ̂ - θ‖ of the next forecast.

        Reading them waits for the device. Of sharded parameters only this process's part counts.
        With `damped=True` there are the steps alone.
        """
        if not self.predictions:
            return {}
        numbers = {"forecast_steps": self.predictions[0].steps}
        if not self.settings.get("damped"):
            numbers["forecast_length"] = self._length()
        return numbers

    @torch.no_grad()
    def _length(self) -> float:
        total = 0.0
        for prediction, optimizer in zip(self.predictions, self._optimizers, strict=True):
            groups = [(group, p) for group in optimizer.param_groups for p in group["params"]]
            own = {p: group.get("prediction_steps") for group, p in groups}
            for p, delta in prediction.displacements():
                steps = prediction.steps if own[p] is None else own[p]
                dtype = torch.promote_types(delta.dtype, torch.float32)
                total += (steps * torch.linalg.vector_norm(delta, dtype=dtype).item()) ** 2
        return float(total**0.5)
