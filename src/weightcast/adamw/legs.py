"""Launches of kernels one by one: whatever interrupts, it is known where the weights are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor

from weightcast.kernels import eager
from weightcast.kernels.operands import Operands, Settings
from weightcast.tensors import resolved

LOW_PRECISION = (torch.bfloat16, torch.float16)


class Stage(Enum):
    """How far a launch has come."""

    PENDING = auto()
    UNDER_WAY = auto()
    DONE = auto()


@dataclass
class Launch:
    """Parameters that one launch of a kernel handles."""

    backend: Any
    params: list[Tensor]
    operands: Operands


@dataclass(eq=False)
class Leg:
    """A launch, from `now` times Δ/γ ahead of θ to `then` times.

    `call` is what is asked of the back-end: step, forecast or restore; or of plain PyTorch, to
    walk, a part of either.
    """

    launch: Launch
    call: str
    settings: Settings
    now: float | Tensor = 0.0
    then: float | Tensor = 0.0
    stage: Stage = Stage.PENDING
    versions: list[int] = field(default_factory=list)

    def run(self) -> None:
        """Launch; its stage is written before and after."""
        o, backend = self.launch.operands, self.launch.backend
        o.launched = None
        if backend is eager:
            self.versions = [p._version for p in o.params]
        self.stage = Stage.UNDER_WAY
        if self.call == "restore":
            backend.restore(o)
        elif self.call == "forecast":
            backend.forecast(o, self.settings)
        elif self.call == "walk":
            eager.walk(o, self.settings)
        else:
            o.grads = resolved(p.grad for p in self.launch.params if p.grad is not None)
            try:
                backend.step(o, self.settings)
            finally:
                o.grads = []
        self.stage = Stage.DONE

    def parts(self) -> list[Leg]:
        """As legs of which none can be interrupted half-way: a kernel, or one write a parameter."""
        launch = self.launch
        is_simple = is_same(self.now, 0.0) or is_same(self.then, 0.0)
        if launch.backend is not eager or launch.operands.sources:
            return [self]
        if self.call == "step" and not (is_same(self.now, 0.0) and is_same(self.then, 0.0)):
            middle = [Leg(launch, "step", replace(self.settings, back=0.0, ahead=0.0))]
        elif self.call == "step" or is_simple:
            return [self]
        else:
            middle = []
        back = replace(self.settings, back=self.now, ahead=0.0)
        ahead = replace(self.settings, back=0.0, ahead=self.then)
        first = [Leg(launch, "walk", back, now=self.now)]
        last = [Leg(launch, "walk" if middle else "forecast", ahead, then=self.then)]
        skipped = (is_same(self.now, 0.0), is_same(self.then, 0.0))
        return [*(() if skipped[0] else first), *middle, *(() if skipped[1] else last)]

    def way_back(self) -> list[Leg]:
        """From wherever the parameters are to θ."""
        launch, o = self.launch, self.launch.operands
        ran = self.stage is Stage.DONE or (
            self.stage is Stage.UNDER_WAY and o.launched is not None and o.launched()
        )
        is_low = bool(o.params) and o.params[0].dtype in LOW_PRECISION
        if self.call == "step" and ran and o.sources and not is_low:
            return []
        if theta := o.sources or (o.sinks if ran else []):
            kept = Launch(launch.backend, launch.params, Operands(o.params, sources=theta))
            return [Leg(kept, "restore", self.settings)]
        if launch.backend is eager and self.stage is Stage.UNDER_WAY and self.call != "step":
            legs: list[Leg] = []
            for n, (version, p) in enumerate(zip(self.versions, o.params, strict=True)):
                one = _one(launch, n)
                if version == p._version:
                    legs += self._back(one, self.now)
                elif o.sinks:
                    one.operands = Operands([p], sources=[o.sinks[n]])
                    legs.append(Leg(one, "restore", self.settings))
                else:
                    legs += self._back(one, self.then)
            return legs
        return self._back(launch, self.then if ran else self.now)

    def _back(self, launch: Launch, where: float | Tensor) -> list[Leg]:
        if is_same(where, 0.0):
            return []
        settings = replace(self.settings, back=where, ahead=0.0)
        return [Leg(launch, "forecast", settings, now=where)]


class Journal:
    """The legs under way. What is left of them when others begin was interrupted."""

    def __init__(self) -> None:
        self._open: list[Leg] = []

    @property
    def is_open(self) -> bool:
        """Whether something was interrupted."""
        return bool(self._open)

    def begin(self, legs: Iterable[Leg]) -> None:
        """Run them all. `close` when it is noted where the weights are."""
        self._open = [part for leg in legs for part in leg.parts()]
        for leg in self._open:
            leg.run()

    def close(self) -> None:
        """It is noted."""
        self._open = []

    def go_back(self) -> None:
        """All that the legs have moved goes back to θ, the last ones first."""
        self.begin([back for leg in reversed(self._open) for back in leg.way_back()])


def is_same(one: float | Tensor, other: float | Tensor) -> bool:
    """Whether two numbers are known to be equal; one on a device would have to be waited for."""
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


def _one(launch: Launch, n: int) -> Launch:
    """One parameter of several."""
    o = launch.operands
    names = ("params", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "counts")
    columns = {name: getattr(o, name)[n : n + 1] for name in names}
    return Launch(launch.backend, launch.params[n : n + 1], Operands(**columns))
