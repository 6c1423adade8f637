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

import copy
import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from weightcast.errors import WeightcastError
from weightcast.reports import marks_of_gradients
from weightcast.tensors import untraced

if TYPE_CHECKING:
    from weightcast.prediction import WeightPrediction

_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


class Timetable:
    """Tells a prediction when.

    Model and optimizer hold the timetable by their hooks, and it holds the prediction; neither
    holds the model or the optimizer.
    """

    def __init__(
        self, prediction: WeightPrediction, model: nn.Module, optimizer: Optimizer
    ) -> None:
        self.prediction = prediction
        self._handles: list[RemovableHandle] = [
            optimizer.register_state_dict_pre_hook(self._before_access),
            optimizer.register_load_state_dict_pre_hook(self._before_loading_state),
        ]
        self._evaluations: list[Callable[[], None]] = []  # under way: what is to follow each
        self._sharded = weakref.WeakSet[Any](m for m in model.modules() if hasattr(m, "reshard"))
        self._place = False
        for module in (model, *_parts(model)):
            self._handles += [
                module.register_forward_pre_hook(self._before_forward, prepend=True),
                module.register_forward_hook(self._after_forward, always_call=True),
            ]
        if prediction._hears_of_steps:
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
        for thing in (*modules, optimizer):
            for way in _COPYING:
                vars(thing)[way] = functools.partial(_plainly, weakref.ref(thing), way)

    def end(self, model: nn.Module | None, optimizer: Optimizer | None) -> None:
        """Leave no trace."""
        for handle in self._handles:
            handle.remove()
        for thing in (*(model.modules() if model is not None else ()), optimizer):
            for way in _COPYING if thing is not None and not _owners(thing) else ():
                vars(thing).pop(way, None)

    @untraced
    def _before_forward(self, module: nn.Module, args: Any) -> None:
        prediction, model = self.prediction, self.prediction._model()
        if torch.compiler.is_compiling() or _is_tracing():  # an export shows stand-ins of weights
            if prediction.is_predicted:
                raise WeightcastError(_TRACED)
        elif model is None or prediction._optimizer() is None:
            prediction.detach()
        elif not model.training:
            self._evaluations.append(prediction._pause())
        else:
            self._evaluations.clear()  # one that was interrupted never ended
            if torch.is_grad_enabled() and torch._C._current_graph_task_id() < 0:
                prediction.predict()
            elif not prediction._is_awaited:
                prediction.restore()
        self._gather_anew()

    @untraced
    def _after_forward(self, *_: Any) -> None:
        if self._evaluations:
            self._evaluations.pop()()
            self._gather_anew()

    def _gather_anew(self) -> None:
        """FSDP2 keeps what it gathered of its root until the next backward: perhaps elsewhere."""
        if self._place is not self.prediction.is_predicted:
            self._place = self.prediction.is_predicted
            for module in self._sharded:
                module.reshard()

    def _before_access(self, *_: Any) -> None:
        self.prediction.restore()

    def _before_loading_state(self, *_: Any) -> None:
        self.prediction.restore()
        self.prediction._plans.clear()  # they hold the old state
        self.prediction._observer.apart.clear()
        self.prediction._reports.has_stepped = False  # the loaded one may not have

    @untraced
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        prediction, reports = self.prediction, self.prediction._reports
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        prediction._steps_running += 1
        if prediction._steps_running > 1:
            prediction.restore()
            return None
        prediction._observer.watched.clear()  # a step that raised never ended
        if not callable(closure):
            prediction._restore_for_update()
            return None
        prediction.restore()

        @functools.wraps(closure)
        def at_prediction() -> Any:
            ever, gradients = reports.ever_predicted, marks_of_gradients(optimizer)
            try:
                prediction.predict()
                loss = closure()
            except BaseException:
                prediction.restore()
                raise
            # some trainers pass a closure that does nothing after a backward of their own
            reports.ever_predicted = ever or marks_of_gradients(optimizer) != gradients
            prediction._steps_running = 1
            prediction._restore_for_update()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": at_prediction}
        return (args[0], at_prediction, *args[2:]), kwargs

    @untraced
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.prediction._steps_running -= 1
        if self.prediction._steps_running == 0:
            self.prediction._observer.compare(optimizer)
            self.prediction._reports.step_taken(self.prediction._is_wanted())


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


def _owners(thing: Any) -> dict[int, WeightPrediction]:
    """The predictions whose timetables hooked a module or an optimizer, by the hooks' numbers."""
    tables = [v for k, v in vars(thing).items() if "_hooks" in k and isinstance(v, OrderedDict)]
    hooks = [(n, getattr(hook, "hook", hook)) for table in tables for n, hook in table.items()]
    owners = {n: getattr(hook, "__self__", None) for n, hook in hooks if callable(hook)}
    return {n: owner.prediction for n, owner in owners.items() if isinstance(owner, Timetable)}


_COPYING = ("__deepcopy__", "__reduce_ex__")
"""What copying and pickling ask an instance for, before they touch any weight."""


def _plainly(reference: Callable[[], Any], way: str, how: Any) -> Any:
    """Copy or pickle an attached module or optimizer: at θ, and as if it were not attached.

    Its class may have a way of its own to do either, as those of parametrized modules have.
    """
    thing = reference()
    attached, owners = vars(thing), _owners(thing)
    for prediction in owners.values():
        prediction.restore()
    plain = {name: value for name, value in attached.items() if name not in _COPYING}
    for name, table in plain.items():
        if "_hooks" in name and isinstance(table, OrderedDict):
            plain[name] = type(table)((n, hook) for n, hook in table.items() if n not in owners)
    object.__setattr__(thing, "__dict__", plain)
    try:
        return copy.deepcopy(thing, how) if way == "__deepcopy__" else thing.__reduce_ex__(how)
    finally:
        object.__setattr__(thing, "__dict__", attached)
