"""What a backward computes anew (activation checkpointing), it computes where its forward was."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._C._autograd import _get_sequence_nr
from torch.utils.hooks import RemovableHandle

from weightcast.errors import WeightcastError
from weightcast.forecast import Forecast


class Recomputing:
    """Refuses it where θ has come back between a forward at θ̂ and its backward.

    What autograd has kept of the weights it refuses by itself; what is computed anew would be wrong
    without a word. Hooks of all parts are there only from that moment until the next forward or
    step, so that nothing pays for them. A graph made since then, by an evaluation with gradients,
    belongs to θ and is computed anew there: autograd numbers its nodes in the order of the forward.
    """

    def __init__(self, forecast: Forecast, model: Callable[[], nn.Module | None]) -> None:
        self.forecast, self._model = forecast, model
        self._guards: list[RemovableHandle] = []
        self._since = 0  # the number of the first node that was made at θ
        refuse = weakref.WeakMethod(self._refuse)
        forecast.interrupted = lambda: (refuse() or (lambda: None))()

    def _refuse(self) -> None:
        self._since = _get_sequence_nr()
        if not self._guards and (model := self._model()) is not None:
            parts = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
            self._guards = [m.register_forward_pre_hook(self._guard) for m in parts]

    def refuse_no_more(self) -> None:
        """A new forward, or a step, has begun."""
        while self._guards:
            self._guards.pop().remove()

    def _guard(self, *_: Any) -> None:
        if torch._C._current_graph_task_id() >= 0:
            node = torch._C._current_autograd_node()
            if node is None or node._sequence_nr() < self._since:
                raise WeightcastError(_ELSEWHERE)


_ELSEWHERE = (
    "a backward computes activations anew (checkpointing), but the weights were restored after its "
    "forward, which ran at the forecast: by state_dict(), a copy, restore(), or an evaluation with "
    "gradients. Do that before the forward or after optimizer.step(), evaluate under "
    "torch.no_grad(), or read weights in `with prediction.true_weights():`."
)
