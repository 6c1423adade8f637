"""When the weights move: hooks on model and optimizer.

| moment | the weights become |
|---|---|
| `model(...)` in training mode with gradients enabled | θ̂ = θ - s·Δ |
| `model(...)` in training mode under `no_grad` | what they are: θ after a step |
| `model(...)` in eval mode | θ, during that forward |
| `optimizer.step()` begins | θ; a closure runs at θ̂ |
| `state_dict()`, loading, `copy.deepcopy`, pickling | θ; a copy is plain and unattached |

Between `step()` and the next training forward the weights are θ: averaging, logging, saving and
evaluating need no mode switch. Micro-batches of an accumulation share one θ̂, and no forward without
gradients invalidates a graph that waits for its backward.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from weightcast.errors import WeightcastError
from weightcast.forecast import Forecast
from weightcast.hooks.copies import copy_as_before, copy_plainly
from weightcast.tensors import untraced

_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]
_STEP = Optimizer.profile_hook_step(lambda: None).__code__
"""What runs around every `step` and calls its hooks."""


class Timetable:
    """Tells a forecast when.

    Model and optimizer hold the timetable by their hooks, and it holds the forecast; neither holds
    the model or the optimizer.
    """

    def __init__(self, forecast: Forecast, model: nn.Module, optimizer: Optimizer) -> None:
        self.forecast = forecast
        self._model, self._optimizer = weakref.ref(model), weakref.ref(optimizer)
        self._handles: list[RemovableHandle] = [
            optimizer.register_state_dict_pre_hook(self._before_access),
            optimizer.register_load_state_dict_pre_hook(self._before_loading_state),
        ]
        self._evaluations: list[Callable[[], None]] = []  # under way: what is to follow each
        self._steps_running = 0  # a subclass's step may call its parent's
        self._sharded = weakref.WeakSet[Any](m for m in model.modules() if hasattr(m, "reshard"))
        self._place = False
        for module in (model, *_parts(model)):
            self._handles += [
                module.register_forward_pre_hook(self._before_forward, prepend=True),
                module.register_forward_hook(self._after_forward, always_call=True),
            ]
        if forecast.hears_of_steps:
            before = optimizer.register_step_pre_hook(self._before_step)
            # first of all: the others see θ, and what they write there stays
            optimizer._optimizer_step_pre_hooks.move_to_end(before.id, last=False)  # type: ignore[attr-defined]
            self._handles += [before, optimizer.register_step_post_hook(self._after_step)]
        # a part may be saved, loaded or copied on its own; a scripted one takes no hooks
        modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        for module in modules:
            self._handles += [
                module.register_state_dict_pre_hook(self._before_access),
                module.register_load_state_dict_pre_hook(self._before_access),
            ]
        copy_plainly((*modules, optimizer))
        # held weakly: a rule may hold the optimizer
        end = weakref.WeakMethod(self.end)
        weakref.finalize(optimizer, lambda: (end() or _nothing)()).atexit = False

    def end(self) -> None:
        """Put θ back, and leave no trace."""
        model, optimizer = self._model(), self._optimizer()
        self.forecast.end()
        for handle in self._handles:
            handle.remove()
        copy_as_before(model.modules() if model is not None else ())
        copy_as_before([optimizer] if optimizer is not None else ())

    @untraced
    def _before_forward(self, module: nn.Module, args: Any) -> None:
        forecast, model = self.forecast, self._model()
        if torch.compiler.is_compiling() or _is_tracing():  # an export shows stand-ins of weights
            if forecast.is_predicted:
                raise WeightcastError(_TRACED)
        elif model is None or forecast.optimizer is None:
            self.end()
        elif not model.training:
            self._evaluations.append(forecast.pause())
        else:
            self._evaluations.clear()  # one that was interrupted never ended
            if torch.is_grad_enabled() and torch._C._current_graph_task_id() < 0:
                forecast.predict()
            elif not forecast.backward_pending:
                forecast.restore()
        self._gather_anew()

    @untraced
    def _after_forward(self, *_: Any) -> None:
        if self._evaluations:
            self._evaluations.pop()()
            self._gather_anew()

    def _gather_anew(self) -> None:
        """FSDP2 keeps what it gathered of its root until the next backward: perhaps elsewhere."""
        if self._place is not self.forecast.is_predicted:
            self._place = self.forecast.is_predicted
            for module in self._sharded:
                module.reshard()

    def _before_access(self, *_: Any) -> None:
        self.forecast.restore()

    def _before_loading_state(self, *_: Any) -> None:
        self.forecast.state_replaced()

    @untraced
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if self._steps_running and _is_outermost(optimizer):
            self._steps_running = 0  # one that raised never ended
        self._steps_running += 1
        if self._steps_running > 1:
            self.forecast.restore()
        elif not callable(closure):
            self.forecast.before_step()
        elif "closure" in kwargs:
            return args, {**kwargs, "closure": self.forecast.around(closure)}
        else:
            return (args[0], self.forecast.around(closure), *args[2:]), kwargs
        return None

    @untraced
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._steps_running -= 1
        if self._steps_running == 0:
            self.forecast.after_step()


def _nothing() -> None:
    """Do nothing."""


def _is_outermost(optimizer: Optimizer) -> bool:
    """Whether the step that begins now is within no other of the same optimizer."""
    frame, count = sys._getframe(), 0
    while (back := frame.f_back) is not None:
        frame = back
        if frame.f_code is _STEP:
            count += frame.f_locals["args"][0] is optimizer
    return count == 1


_TRACED = "the model is exported while its weights are predicted: call prediction.restore() first."


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """The modules whose forward stands for the model's, where a trainer never calls the model.

    Lightning calls `training_step`, which calls what the LightningModule is made of.
    """
    parts = list(model.children()) if hasattr(model, "training_step") else []
    for part in parts:
        if isinstance(part, nn.ModuleList | nn.ModuleDict):  # called by none either
            parts += part.children()
        elif not isinstance(part, torch.jit.ScriptModule):
            yield part
