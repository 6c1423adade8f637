"""How bytes move: parameters of one kind go to θ̂ and back, in as few passes over memory as we can.

| parameters | how |
|---|---|
| float32, on a CPU or GPU for which there are kernels, by Adam's rule | kernels: one pass |
| on a CPU, by an element-wise rule, large | tiles: what is computed of each stays in the cache |
| on a CPU, by an element-wise rule, small | gathered: one formula for many |
| on other devices, by an element-wise rule | multi-tensor, where torch's optimizer is |
| by any other rule | one by one |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from weightcast.displacement.rules import OBSERVED, OBSERVED_RULE, Group, Rule, rate
from weightcast.errors import InvalidArgumentError
from weightcast.kernels.operands import Operands, count_anew, operands_of, settings_of
from weightcast.tensors import StateView, Tensors, kept_memory, nonzero, plain, plain_all, tiles


class Way(Enum):
    """How the parameters of a batch are computed."""

    KERNELS = auto()
    TILED = auto()
    GATHERED = auto()
    MULTI_TENSOR = auto()
    SINGLE = auto()


class Place(Enum):
    """Where the parameters of a batch are."""

    TRUE = auto()
    BETWEEN = auto()  # a forecast is being made, or was interrupted
    PREDICTED = auto()


@dataclass(eq=False)
class Batch:
    """The record of parameters of one group that move together: where they and their θ are.

    `saved` is the memory that keeps θ while they are at θ̂; an observed displacement lends its own.
    The place is written before bytes move and after, so that `restore` may be called at any moment,
    and again if it was interrupted.
    """

    group: Group
    rule: Rule
    way: Way
    params: list[Tensor]
    states: list[dict[str, Any]]
    kernels: Any = None
    memory: dict[Tensor, Tensor] = field(default_factory=dict)  # what served as `saved` so far
    saved: list[Tensor] = field(default_factory=list)
    operands: Operands = field(default_factory=Operands)
    back: Operands = field(default_factory=Operands)  # those of the way back
    place: Place = Place.TRUE
    reach: float = 0.0  # how many displacements they were moved
    decay: float | Tensor = 1.0  # what was left of θ before
    scale: float | Tensor = 1.0  # observed: how many times what `saved` held they were moved
    walked: list[Tensor] = field(default_factory=list)  # observed: what `saved` held, on the way
    pieces: list[tuple[list[Tensor], list[Tensor]]] = field(default_factory=list)  # saved so far

    def forecast(self, reach: float, decay: Any = 1.0) -> None:
        """Keep θ, and move to θ̂ = decay·θ - reach·Δ, the paper's Eq. 7.

        Raises:
            InvalidArgumentError: the rule returned another shape than the parameter's.
        """
        if self.is_observed:
            self.saved = [state[OBSERVED] for state in self.states]
            self.scale = nonzero(reach * rate(self.group))
        elif not self.saved:
            self._prepare()
        self.reach, self.decay = reach, decay
        self.operands.launched, self.walked = None, []
        self.place = Place.BETWEEN
        if self.way is Way.KERNELS:
            count_anew(self.operands, self.states)
            self.kernels.forecast(self.operands, settings_of(self.group, reach, decay))
        else:
            for state, params, saved in self._pieces():
                deltas = self._deltas(state, params)
                torch._foreach_copy_(saved, params)
                self.pieces.append((params, saved))
                if isinstance(decay, Tensor) or decay != 1:
                    torch._foreach_mul_(params, decay)
                torch._foreach_sub_(params, deltas, alpha=reach)
            self._end_loan()
        self.place = Place.PREDICTED
        self.pieces = []

    def restore(self) -> list[Tensor]:
        """Put θ back, bit for bit. Does no harm if it is there.

        Returns:
            Parameters that have taken another shape meanwhile: they stay as they are.
        """
        changed: list[Tensor] = []
        launched = self.operands.launched if self.place is Place.BETWEEN else None
        if self.place is Place.PREDICTED or (launched is not None and launched()):
            try:
                if self.way is Way.KERNELS:
                    self.kernels.restore(self.back)
                else:
                    torch._foreach_copy_(plain_all(self.params), plain_all(self.saved))
            except RuntimeError:
                for p, theta in zip(plain_all(self.params), plain_all(self.saved), strict=True):
                    if p.shape == theta.shape:
                        p.copy_(theta)
                    else:
                        changed.append(p)
        elif self.place is Place.BETWEEN:
            self._end_loan()
            for params, saved in self.pieces:
                torch._foreach_copy_(params, saved)
        self.place = Place.TRUE
        self.pieces = []
        return changed

    def is_at_forecast(self) -> bool:
        """Whether the parameters are where they were moved, as far as the formula tells."""
        if self.is_observed:
            return False
        rows = zip(plain_all(self.params), plain_all(self.saved), self.displacements(), strict=True)
        return all(
            torch.allclose(p, self.decay * theta - self.reach * delta, rtol=1e-4, atol=1e-7)
            for p, theta, delta in rows
        )

    @property
    def is_observed(self) -> bool:
        """Whether the displacement is what was seen around the last step."""
        return self.rule is OBSERVED_RULE

    def observed(self) -> list[Tensor]:
        """While predicted: what `saved` held, rebuilt from how far the weights were moved."""
        if not self.walked:
            walked = torch._foreach_sub(plain_all(self.saved), plain_all(self.params))
            self.walked = list(torch._foreach_div(walked, self.scale))
        return self.walked

    def keep(self, observed: list[Tensor]) -> None:
        """After `restore`: the displacements are in the state again."""
        torch._foreach_copy_(plain_all(self.saved), observed)
        for state, buffer in zip(self.states, self.saved, strict=True):
            state[OBSERVED] = buffer

    def displacements(self) -> list[Tensor]:
        """Δ of each parameter, as new `plain` tensors."""
        if self.is_observed and OBSERVED not in self.states[0]:  # predicted
            deltas = list(torch._foreach_mul(self.observed(), rate(self.group)))
            self.walked = []
            return deltas
        pairs = zip(self.params, self.states, strict=True)
        return [self._deltas(StateView([state]), [plain(p)])[0] for p, state in pairs]

    def _prepare(self) -> None:
        """All memory is there before any weight moves."""
        saved = [kept_memory(p, self.memory) for p in self.params]
        if self.way is Way.KERNELS:
            sinks = plain_all(saved)
            self.operands = operands_of(self.params, self.states, self.group, sinks=sinks)
            self.back = Operands(self.operands.params, sources=sinks)
        self.saved = saved  # last: it tells that all is there

    def _end_loan(self) -> None:
        """The memory of an observed displacement holds θ now."""
        for lender in self.states if self.is_observed else ():
            lender.pop(OBSERVED, None)

    def _pieces(self) -> Iterator[tuple[StateView, list[Tensor], list[Tensor]]]:
        """What is computed at once: the state, the parameters, and where to keep them."""
        params, saved = plain_all(self.params), plain_all(self.saved)
        if self.way is Way.TILED:
            (state,) = self.states
            names = columns(self.rule, state)
            for p, kept, *parts in tiles(params[0], saved[0], *(plain(state[k]) for k in names)):
                yield StateView([state | dict(zip(names, parts, strict=True))]), [p], [kept]
        elif self.way is Way.GATHERED and len(params) > 1:
            yield StateView(self.states, _flatten_dense_tensors), params, saved
        else:
            yield StateView(self.states), params, saved

    def _deltas(self, state: StateView, params: list[Tensor]) -> list[Tensor]:
        delta = self.rule.formula(state, self.group)
        if self.way is Way.GATHERED and len(params) > 1:
            if delta.shape == (sum(p.numel() for p in params),):
                return list(_unflatten_dense_tensors(delta, params))
            delta = Tensors([delta] * len(params))
        deltas = delta.tensors if isinstance(delta, Tensors) else [delta]
        for p, d in zip(params, deltas, strict=True):
            if d.shape != p.shape:
                name = getattr(self.rule.formula, "__name__", "rule")
                raise InvalidArgumentError(
                    f"the rule {name!r} returned a displacement of shape {tuple(d.shape)} for a "
                    f"parameter of shape {tuple(p.shape)}."
                )
        return [d.to_dense() if d.is_sparse else d for d in deltas]


def columns(rule: Rule, state: Mapping[str, Any]) -> list[str]:
    """The tensors that an element-wise rule reads."""
    if rule is OBSERVED_RULE:
        return [OBSERVED]
    return [k for k, v in state.items() if isinstance(v, Tensor) and k != "step"]
