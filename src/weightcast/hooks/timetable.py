"""When the weights move: hooks on model and optimizer.

| moment | the weights become |
|---|---|
| `model(...)` in training mode with gradients enabled | θ̂ = θ - s·Δ |
| `model(...)` in training mode under `no_grad` | what they are: θ after a step |
| `model(...)` in eval mode | θ, during that forward |
| `optimizer.step()` begins | θ, also for hooks of others; a closure runs at θ̂ |
| `with prediction.true_weights():` | θ, and then what they were |
| a layer merges or unmerges (LoRA) | θ |
| `state_dict()`, loading, `copy.deepcopy`, pickling | θ; a copy is plain and unattached |

Between `step()` and the next training forward the weights are θ: averaging, logging, saving and
evaluating need no mode switch. Micro-batches of an accumulation share one θ̂, and no forward without
gradients invalidates a graph that waits for its backward.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from weightcast.errors import WeightcastError
from weightcast.forecast import Forecast
from weightcast.hooks.copies import copy_as_before, copy_plainly
from weightcast.hooks.merging import merge_as_before, merge_at_truth
from weightcast.hooks.recomputing import Recomputing
from weightcast.hooks.steps import Steps
from weightcast.tensors import untraced

_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


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
            optimizer.register_load_state_dict_post_hook(self._after_loading_state),
        ]
        self._evaluations: list[Callable[[], None]] = []  # under way: what is to follow each
        self._recomputing = Recomputing(forecast, self._model)
        self._steps = Steps(forecast, optimizer, self._recomputing.refuse_no_more)
        self._sharded = weakref.WeakSet[Any](m for m in model.modules() if hasattr(m, "reshard"))
        self._place = False
        for module in (model, *_parts(model)):
            self._handles += [
                module.register_forward_pre_hook(self._before_forward, prepend=True),
                module.register_forward_hook(self._after_forward, always_call=True),
            ]
        self._hooked = weakref.WeakSet[nn.Module]()
        self._hook(model)
        copy_plainly([optimizer])
        appended = weakref.WeakMethod(self._appended)
        self._handles.append(
            register_module_module_registration_hook(lambda *args: (appended() or _nothing)(*args))
        )
        # held weakly: a rule may hold the optimizer
        end = weakref.WeakMethod(self.end)
        weakref.finalize(optimizer, lambda: (end() or _nothing)()).atexit = False

    def end(self) -> None:
        """Put θ back, and leave no trace."""
        model, optimizer = self._model(), self._optimizer()
        self.forecast.end()
        self._steps.end()
        self._recomputing.refuse_no_more()
        for handle in self._handles:
            handle.remove()
        merge_as_before(model.modules() if model is not None else ())
        copy_as_before(model.modules() if model is not None else ())
        copy_as_before([optimizer] if optimizer is not None else ())

    def _hook(self, model: nn.Module) -> None:
        """A part may be saved, loaded or copied on its own; a scripted one takes no hooks."""
        parts = (m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule))
        modules = [m for m in parts if m not in self._hooked]
        for module in modules:
            self._handles += [
                module.register_state_dict_pre_hook(self._before_access),
                module.register_load_state_dict_pre_hook(self._before_access),
            ]
        copy_plainly(modules)
        merge_at_truth(modules, self.forecast)
        self._hooked.update(modules)

    def _appended(self, parent: nn.Module, _: str, part: nn.Module | None) -> None:
        if part is not None and parent in self._hooked:
            self._hook(part)

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
            if self._steps.unseen > 1 and not self._steps.is_seen:
                return  # something else is trained, by other means: this is no training
            if torch.is_grad_enabled() and torch._C._current_graph_task_id() < 0:
                self._steps.is_seen = True
                self._recomputing.refuse_no_more()
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

    @contextmanager
    def true_weights(self) -> Iterator[None]:
        """θ for reading, at any moment."""
        resume = self.forecast.pause(for_reading=True)
        self._gather_anew()
        try:
            yield
        finally:
            resume()
            self._gather_anew()

    def _before_access(self, *_: Any) -> None:
        self.forecast.restore()

    def _before_loading_state(self, *_: Any) -> None:
        self.forecast.state_replaced()

    def _after_loading_state(self, *_: Any) -> None:
        self.forecast.state_loaded()


def _nothing(*_: Any) -> None:
    """Do nothing."""


_TRACED = "the model is exported while its weights are predicted: call prediction.restore() first."


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """The modules whose forward stands for the model's, where a trainer never calls the model.

    Lightning calls `training_step`, which calls what the LightningModule is made of; a class
    without a `forward` has other methods that do so.
    """
    is_called = type(model).forward is not nn.Module.forward and not hasattr(model, "training_step")
    parts = [] if is_called else list(model.children())
    for part in parts:
        if isinstance(part, nn.ModuleList | nn.ModuleDict):  # called by none either
            parts += part.children()
        elif not isinstance(part, torch.jit.ScriptModule):
            yield part
