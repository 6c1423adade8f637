"""Displacements that no state tells: seen around a step, as the difference of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from weightcast.displacement.rules import OBSERVED, Group, rate
from weightcast.tensors import buffer_like, host_step, moving, nonzero, plain, plain_all

UNKNOWN: dict[str, Any] = {}
"""The state of a parameter that has none: one object, so that a plan knows it again."""


class Observer:
    """Keeps θ from before a step, and what the step subtracted from it.

    Δ divided by the learning rate is kept in the optimizer's state, as `OBSERVED`, and so belongs
    to its checkpoints. While predicted, and while the optimizer steps, the same memory holds θ.
    """

    def __init__(self) -> None:
        self.apart: dict[Tensor, dict[str, Any]] = {}  # state of those whose own stays empty
        self.watched: list[tuple[Group, list[Tensor], list[Tensor]]] = []  # θ from before a step
        self._spare: dict[
            Tensor, Tensor
        ] = {}  # a second memory, where the last displacement stands

    def states_of(self, optimizer: Optimizer, params: list[Tensor]) -> list[dict[str, Any]]:
        """The optimizer's states of parameters, or what is kept in their place."""
        return [optimizer.state.get(p) or self.apart.get(p, UNKNOWN) for p in params]

    def remember(
        self, optimizer: Optimizer, group: Group, held: dict[Tensor, Tensor], may_predict: bool
    ) -> None:
        """Keep θ of a group's parameters; `held` is the memory that holds it already.

        The last displacement stands if a fused step under a gradient scaler may be skipped, or if a
        closure may be predicted within the step.
        """
        stands = may_predict or hasattr(optimizer, "found_inf")
        params = list(filter(takes_part, group["params"]))
        if not params:
            return
        fresh: dict[Tensor, Tensor] = {}
        for p, state in zip(params, self.states_of(optimizer, params), strict=True):
            if p not in held:
                last = None if stands else state.pop(OBSERVED, None)
                fresh[p] = buffer_like(p, self._spare.pop(p, None) if last is None else last)
        if fresh:
            with moving():
                torch._foreach_copy_(plain_all(fresh.values()), plain_all(fresh))
        buffers = list(map((held | fresh).__getitem__, params))
        self.watched.append((group, params, buffers))

    def forget(self, optimizer: Optimizer, group: Group) -> None:
        """An old displacement is not to be taken for the last one later."""
        for state in self.states_of(optimizer, list(filter(takes_part, group["params"]))):
            state.pop(OBSERVED, None)

    def drop_all_but(self, alive: set[Tensor]) -> None:
        """Forget parameters that the optimizer has no more."""
        for memory in (self.apart, self._spare):
            for p in memory.keys() - alive:
                del memory[p]

    def compare(self, optimizer: Optimizer) -> None:
        """The step has ended: what it subtracted is the displacement."""
        found_inf = getattr(optimizer, "found_inf", None)
        for group, params, buffers in self.watched:
            if not may_move(group):  # nothing was to be seen
                continue
            with moving():
                torch._foreach_sub_(plain_all(buffers), plain_all(params))
                torch._foreach_div_(plain_all(buffers), nonzero(rate(group)))
            # an empty state tells many optimizers to initialise it: it stays empty
            is_lazy = any(optimizer.state.get(p) for p in params)
            for p, displacement in zip(params, buffers, strict=True):
                is_apart = (is_lazy or p.grad is None) and not optimizer.state.get(p)
                state = self.apart.setdefault(p, {}) if is_apart else optimizer.state[p]
                if OBSERVED in state:
                    if found_inf is not None:
                        _keep_if(found_inf, displacement, state[OBSERVED])
                    self._spare[p] = state[OBSERVED]
                state[OBSERVED] = displacement
        self.watched.clear()


def may_move(group: Group) -> bool:
    """Whether its learning rate is not known to be zero."""
    lr = rate(group)
    return isinstance(lr, Tensor) or lr != 0


def is_told(optimizer: Optimizer) -> bool:
    """Whether any state holds a displacement, if any tells of steps."""
    states = [state for state in optimizer.state.values() if host_step(state)]
    return not states or any(OBSERVED in state for state in states)


def takes_part(p: Tensor) -> bool:
    """Whether a step may update the parameter."""
    return p.grad is not None or (p.requires_grad and not is_lazy(p))


def _keep_if(found_inf: Tensor, displacement: Tensor, last: Tensor) -> None:
    """Where the step was skipped, the last displacement stands; decided on the device."""
    target = plain(displacement)
    skipped = found_inf.to(target.device) > 0
    with moving():
        target.copy_(torch.where(skipped, plain(last), target))
