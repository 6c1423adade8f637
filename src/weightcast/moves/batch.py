"""The record of what moves together: where the parameters and their θ are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor

from weightcast.displacement.rules import OBSERVED, OBSERVED_RULE, Group, Rule, adam, rate
from weightcast.kernels import eager
from weightcast.kernels.operands import Operands, Settings, count_anew, operands_of, settings_of
from weightcast.moves.passes import Way, displacements, pieces
from weightcast.tensors import StateView, kept_memory, memory_of, nonzero, plain, plain_all


class Place(Enum):
    """Where the parameters of a batch are."""

    TRUE = auto()
    BETWEEN = auto()  # a forecast is being made, or was interrupted
    PREDICTED = auto()


@dataclass(eq=False)
class Batch:
    """The record of parameters of one group that move together: where they and their θ are.

    θ is kept while they are at θ̂: in `saved`, to which an observed displacement lends its own
    memory, or in float32 masters. If neither, kernels compute it: θ = θ̂ + reach·Δ. The place is
    written before bytes move and after, so that `restore` may be called at any moment, and again if
    it was interrupted.
    """

    group: Group
    rule: Rule
    way: Way
    params: list[Tensor]
    states: list[dict[str, Any]]
    kernels: Any = None
    memory: dict[Tensor, Tensor] = field(default_factory=dict)  # what served as `saved` so far
    keeps: bool = True  # a copy of θ
    saved: list[Tensor] = field(default_factory=list)
    operands: Operands = field(default_factory=Operands)
    back: Operands = field(default_factory=Operands)  # those of the way back
    is_prepared: bool = False
    place: Place = Place.TRUE
    reach: float = 0.0  # how many displacements they were moved
    decay: float | Tensor = 1.0  # what was left of θ before
    settings: Settings | None = None  # by which kernels moved them
    distance: float | Tensor = 0.0  # without a copy: how many times Δ/γ they were moved
    scale: float | Tensor = 1.0  # observed: how many times what `saved` held they were moved
    walked: list[Tensor] = field(default_factory=list)  # observed: what `saved` held, on the way
    pieces: list[tuple[list[Tensor], list[Tensor]]] = field(default_factory=list)  # saved so far
    under_way: tuple[Operands, float | Tensor] | None = None  # a leap, and its end
    mark: list[Any] = field(default_factory=list)  # of the memory of `operands`

    def forecast(self, reach: float, decay: Any = 1.0) -> None:
        """Keep θ, and move to θ̂ = decay·θ - reach·Δ, the paper's Eq. 7.

        Raises:
            InvalidArgumentError: the rule returned another shape than the parameter's.
        """
        if self.is_observed:
            self.saved = [state[OBSERVED] for state in self.states]
            self.scale = nonzero(reach * rate(self.group))
        else:
            self.prepare()
        self.reach, self.decay = reach, decay
        if self.way is Way.KERNELS:
            settings = settings_of(self.group, reach, decay)
            count_anew(self.operands, self.states)
            if self.is_computed:
                settings = replace(settings, back=self.distance)
                self.leap(self.kernels.forecast, self.operands, settings, settings.ahead)
                return
            self.operands.launched, self.place = None, Place.BETWEEN
            self.kernels.forecast(self.operands, settings)
        else:
            self.walked, self.place = [], Place.BETWEEN
            for state, params, saved in pieces(
                self.way, self.rule, self.params, self.states, self.saved
            ):
                deltas = displacements(self.way, self.rule, self.group, state, params)
                torch._foreach_copy_(saved, params)
                self.pieces.append((params, saved))
                if isinstance(decay, Tensor) or decay != 1:
                    torch._foreach_mul_(params, decay)
                torch._foreach_sub_(params, deltas, alpha=reach)
            self._end_loan()
        self.place = Place.PREDICTED
        self.pieces = []

    def leap(
        self, call: Callable[..., None], operands: Operands, settings: Settings, then: Any
    ) -> None:
        """Launch one kernel that ends at `then` times Δ/γ ahead of θ, wherever it starts."""
        operands.launched = None
        self.under_way, self.settings = (operands, then), settings
        call(operands, settings)
        self._land(then)

    def _land(self, then: float | Tensor) -> None:
        if isinstance(self.distance, Tensor) and isinstance(then, Tensor):
            self.distance.copy_(then)  # the very memory that a captured graph reads
        else:
            self.distance = then
        is_away = isinstance(then, Tensor) or then != 0
        self.place = Place.PREDICTED if is_away else Place.TRUE
        self.under_way = None

    def restore(self) -> list[Tensor]:
        """Put θ back: bit for bit where it is kept. Does no harm if it is there.

        Returns:
            Parameters that have taken another shape meanwhile: they stay as they are.
        """
        if self.under_way is not None:  # interrupted
            operands, then = self.under_way
            if operands.launched is not None and operands.launched():
                self._land(then)
            self.under_way = None
        launched = self.operands.launched if self.place is Place.BETWEEN else None
        is_away = self.place is Place.PREDICTED or (launched is not None and launched())
        changed: list[Tensor] = []
        if is_away and self.is_computed and self._is_where_it_was():
            assert self.settings is not None
            settings = replace(self.settings, back=self.distance, ahead=0.0)
            self.leap(self.kernels.forecast, self.operands, settings, 0.0)
        elif is_away or (self.operands.sources and self.place is Place.BETWEEN):
            if self.is_computed:
                self.saved = [self.theta(n, p) for n, p in enumerate(self.params)]
                self.back = Operands(self.operands.params, sources=self.saved)
            changed = self._copy_back()
        elif self.place is Place.BETWEEN:
            self._end_loan()
            for params, saved in self.pieces:
                torch._foreach_copy_(params, saved)
        self.place = Place.TRUE
        self.pieces = []
        return changed

    def _copy_back(self) -> list[Tensor]:
        params, thetas = plain_all(self.params), self.operands.sources or plain_all(self.saved)
        try:
            if self.way is Way.KERNELS:
                self.kernels.restore(self.back)
            else:
                torch._foreach_copy_(params, thetas)
        except RuntimeError:
            pairs = list(zip(params, thetas, strict=True))
            for p, theta in pairs:
                if p.shape == theta.shape:
                    p.copy_(theta)
            return [p for p, theta in pairs if p.shape != theta.shape]
        return []

    def theta(self, number: int, there: Tensor) -> Tensor:
        """θ of a parameter without a copy, from a tensor `there` at its θ̂.

        Of another shape it is not known: zeros of the former shape.
        """
        o, there = self.operands, plain(there)
        m, v = o.exp_avgs[number], (o.max_exp_avg_sqs or o.exp_avg_sqs)[number]
        if m.shape != there.shape:
            return torch.zeros_like(m)
        assert self.settings is not None
        state = {"step": o.counts[number], "exp_avg": m, "exp_avg_sq": v}
        betas = self.settings.beta1, self.settings.beta2
        group = {"lr": self.distance, "betas": betas, "eps": self.settings.eps, "amsgrad": False}
        delta: Tensor = adam(StateView([state]), group)
        return there + delta

    def _is_where_it_was(self) -> bool:
        """Whether the table of the kernels still holds: others may move or convert a parameter."""
        return self.mark == memory_of(self._tensors())

    def _tensors(self) -> list[Tensor]:
        o = self.operands
        return [*o.params, *o.exp_avgs, *o.exp_avg_sqs, *o.max_exp_avg_sqs]

    def can_step(self) -> bool:
        """Whether a kernel finds θ: it is kept, or the present formula leads back to it."""
        if not self.is_computed:
            return True
        now = settings_of(self.group, 0.0, 1.0)
        then, is_amsgrad = self.settings, bool(self.operands.max_exp_avg_sqs)
        return then is None or (now.beta1, now.beta2, now.eps, bool(self.group["amsgrad"])) == (
            then.beta1, then.beta2, then.eps, is_amsgrad
        )  # fmt: skip

    @property
    def is_one_launch(self) -> bool:
        """Whether all is moved by a kernel, which nothing interrupts."""
        return self.way is Way.KERNELS and self.kernels is not eager

    @property
    def is_computed(self) -> bool:
        """Whether θ is computed, not kept."""
        return not self.keeps and not self.saved and not self.operands.sources

    def is_at_forecast(self) -> bool:
        """Whether the parameters are where they were moved, as far as the formula tells."""
        if self.is_observed or not self.saved:
            return not self.is_observed
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
        way, rule, group = Way.SINGLE, self.rule, self.group
        return [
            displacements(way, rule, group, StateView([state]), [plain(p)])[0] for p, state in pairs
        ]

    def prepare(self) -> None:
        """All memory is there before any weight moves."""
        if not self.keeps and self.place is Place.TRUE:
            self.saved = []  # of an earlier way back
        if self.is_prepared:
            return
        masters = [] if self.keeps else [s["master"] for s in self.states if "master" in s]
        saved = [kept_memory(p, self.memory) for p in self.params] if self.keeps else []
        if self.way is Way.KERNELS:
            sinks = plain_all(saved)
            masters = plain_all(masters)
            self.operands = operands_of(self.params, self.states, self.group, masters, sinks)
            self.back = Operands(self.operands.params, sources=masters or sinks)
            if not self.keeps:
                count_anew(self.operands, self.states)
                self.mark = memory_of(self._tensors())
        self.saved, self.is_prepared = saved, True

    def _end_loan(self) -> None:
        """The memory of an observed displacement holds θ now."""
        for lender in self.states if self.is_observed else ():
            lender.pop(OBSERVED, None)
