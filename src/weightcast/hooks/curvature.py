"""Optimizers whose step differentiates the gradient once more: at θ̂, where its graph belongs."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from weightcast.forecast import Forecast, nothing

_METHODS = ("set_hessian", "compute_hutchinson_hessian")
"""What timm's and pytorch_optimizer's optimizers ask for the curvature, within their step."""


class Curvature:
    """Brings θ̂ back while an optimizer computes the curvature in its step."""

    def __init__(self, forecast: Forecast, optimizer: Optimizer) -> None:
        self._forecast, self._optimizer = forecast, weakref.ref(optimizer)
        self._resume: Callable[[], None] = nothing
        self._names = [name for name in _METHODS if hasattr(type(optimizer), name)]
        for name in self._names:
            vars(optimizer)[name] = functools.partial(self._at_forecast, name)

    def is_wanted(self) -> bool:
        """Whether the coming step may do so: its gradients have a graph."""
        optimizer = self._optimizer() if self._names else None
        groups = [] if optimizer is None else optimizer.param_groups
        gradients = (p.grad for group in groups for p in group["params"] if p.grad is not None)
        return any(gradient.requires_grad for gradient in gradients)

    def hold(self) -> None:
        """Put θ back, such that θ̂ can return to a graph that is valid still."""
        self._resume = self._forecast.pause(for_reading=True)

    def end(self) -> None:
        """Leave no trace."""
        if (optimizer := self._optimizer()) is not None:
            for name in self._names:
                vars(optimizer).pop(name, None)

    def _at_forecast(self, name: str, *args: Any, **kwargs: Any) -> Any:
        optimizer, resume = self._optimizer(), self._resume
        self._resume = nothing
        method = inspect.getattr_static(type(optimizer), name).__get__(optimizer, type(optimizer))
        resume()
        try:
            return method(*args, **kwargs)
        finally:
            self._forecast.restore()
