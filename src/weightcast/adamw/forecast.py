"""The forecast of a `weightcast.AdamW`, from which its step goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from weightcast.adamw.masters import LOW_PRECISION, Masters
from weightcast.displacement.reach import STEPS, checked_steps, settings_of_groups
from weightcast.displacement.rules import Group, Rule, adam
from weightcast.kernels.operands import FUSED_DEVICES
from weightcast.moves.base import RuleForecast
from weightcast.moves.batch import Batch, Place
from weightcast.tensors import moving

_RULE = Rule(adam, decoupled=True, foreach=True, has_masters=True)


class AdamWForecast(RuleForecast):
    """The weights of a `weightcast.AdamW`, which steps from θ̂, or ends there.

    Args:
        optimizer: Whose weights.
        damped: Walk Σ β₁ᵏ (k = 1..s) displacements instead of s.
        keeps: Whether θ is kept where it could be computed.
    """

    steps_from_forecast = True

    def __init__(self, optimizer: Optimizer, damped: bool, keeps: bool) -> None:
        self.keeps = keeps
        self.masters = Masters()
        self.is_awaited = False  # whether there was a forecast since the last step
        super().__init__(optimizer.defaults[STEPS], optimizer, _RULE, damped=damped)

    @property
    def steps(self) -> float:
        """How many steps to look ahead; they live in the optimizer's parameter groups."""
        optimizer = self.optimizer
        return self._steps if optimizer is None else optimizer.defaults[STEPS]

    @steps.setter
    def steps(self, value: float) -> None:
        self._steps = checked_steps(value, "steps", self.damped)
        if (optimizer := self.optimizer) is not None:
            for holder in (optimizer.defaults, *optimizer.param_groups):
                holder[STEPS] = self._steps

    @property
    def backward_pending(self) -> bool:
        """Whether a backward may wait for θ̂; not after a step that ends there, until a forward."""
        return self.is_awaited and self.is_predicted

    def predict(self) -> None:
        """Move the weights from θ to θ̂. Does nothing if they are there."""
        if (optimizer := self.optimizer) is not None:
            if not self.at_forecast:
                self.masters.heed(optimizer)
            super().predict()
            self.is_awaited = True

    def corrected(self) -> bool:
        """Whether all could go straight on from one forecast to another, as other rates want it."""
        if self.batches() != self.moved:
            return False
        if not all(batch.is_computed and batch.can_step() for batch in self.moved):
            return False
        with moving():
            for batch in self.moved:
                batch.forecast(self.reach_of(batch.group))
        return True

    def note_writes(self) -> None:
        """What was written to the weights so far is no matter."""
        super().note_writes()
        if (optimizer := self.optimizer) is not None:
            self.masters.watch(optimizer)

    def forget(self) -> None:
        """The weights are taken for what they are, whatever was known of them."""
        self.moved, self.masters = [], Masters()
        self.at_forecast = self.is_awaited = False
        self.state_replaced()

    # --- the optimizer's step --------------------------------------------------------------------

    def complete_state(self, group: Group, p: Tensor, state: dict[str, Any]) -> None:
        """Make the state of a parameter, or what a loaded one lacks."""
        is_low = p.dtype in LOW_PRECISION
        # on the device, so that nothing waits for it; the plain optimizer's where torch has it
        is_there = group["capturable"] or group["fused"] or is_low or self.reach_of(group)
        device = p.device if is_there and p.device.type in FUSED_DEVICES else torch.device("cpu")
        dtype = torch.float32 if is_low else p.dtype
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(p, dtype=dtype)
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=dtype)
        elif state["step"].device != device or state["step"].dtype != torch.float32:
            state["step"] = state["step"].to(device, torch.float32)
        if group["amsgrad"] and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()
        if not is_low:
            state.pop("master", None)  # of a checkpoint that was made in low precision
        elif "master" not in state:
            state["master"] = p.detach().to(torch.float32, copy=True)

    def distance(self, group: Group, lr: Any = None) -> Any:
        """How many times Δ/γ to walk: s·γ."""
        lr = group["lr"] if lr is None else lr
        if isinstance(lr, Tensor) and lr.device.type == "cpu":
            lr = lr.item()
        steps = self.reach_of(group)
        return steps * lr if steps else 0.0

    def begin_step(self, batches: Sequence[Batch]) -> None:
        """These are about to step from where they are; unless all can, θ comes back first."""
        self.check_once()
        self.rivals.restore()
        ours = set(map(id, batches))
        if not all(id(batch) in ours and batch.can_step() for batch in self.moved):
            self.restore()
        if not self.at_forecast and (optimizer := self.optimizer) is not None:
            self.masters.heed(optimizer)
        self.moved, self.at_forecast = list(batches), True

    def end_step(self, rates: Sequence[Any] | None) -> None:
        """They have stepped; if there are coming rates, all is to be at θ̂ by them."""
        self.moved = [batch for batch in self.moved if batch.place is Place.PREDICTED]
        self.at_forecast, self.is_awaited = rates is not None, False
        if rates is not None and (optimizer := self.optimizer) is not None:
            groups = optimizer.param_groups
            present = [group["lr"] for group in groups]
            try:
                _set_rates(groups, rates)
                if self.known() != self.moved:  # some had no gradient, or no kernel
                    for batch in self.batches():
                        if batch.place is Place.TRUE:
                            self.move(batch)
                self.settings_used = settings_of_groups(groups, self.steps, self.damped)
            finally:
                _set_rates(groups, present)
        self.note_writes()

    def end(self) -> None:
        """Put θ back, and let go of everything."""
        self._steps = self.steps
        super().end()


def _set_rates(groups: Sequence[Group], rates: Sequence[Any]) -> None:
    for group, lr in zip(groups, rates, strict=True):
        if lr is not None:
            group["lr"] = lr
