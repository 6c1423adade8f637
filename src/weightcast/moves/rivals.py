"""Forecasts of other optimizers on the same memory: one at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

from torch import Tensor
from torch.nn.parameter import is_lazy

from weightcast.forecast import Forecast
from weightcast.moves.plans import generation
from weightcast.tensors import overlapping, plain

_live: weakref.WeakSet[Forecast] = weakref.WeakSet()


def live() -> Iterator[Forecast]:
    """All forecasts that are attached."""
    return iter(list(_live))


def enlist(forecast: Forecast) -> None:
    """It is attached now."""
    _live.add(forecast)


class Rivals:
    """Those that move memory which a forecast moves too, by other parameters."""

    def __init__(self, forecast: Forecast) -> None:
        self._forecast = weakref.ref(forecast)
        self._known: list[weakref.ref[Forecast]] = []
        self._seen: tuple[int, int] = (-1, 0)

    def restore(self) -> None:
        """Put θ back where others have moved it."""
        seen = (generation(), len(_live))
        if self._seen != seen:
            self._seen, self._known = seen, self._find()
        for reference in self._known:
            if (rival := reference()) is not None:
                rival.restore()

    def _find(self) -> list[weakref.ref[Forecast]]:
        mine = self._forecast()
        rows = [(f, p) for f in live() for p in _tensors(f)] if len(_live) > 1 else []
        shared = {id(rows[n][0]) for n in overlapping([p for _, p in rows])}
        others = [f for f in live() if id(f) in shared and f is not mine]
        return [weakref.ref(f) for f in others] if id(mine) in shared else []


def _tensors(forecast: Forecast) -> list[Tensor]:
    optimizer = forecast.optimizer
    groups = [] if optimizer is None else optimizer.param_groups
    return [plain(p) for group in groups for p in group["params"] if not is_lazy(p)]
