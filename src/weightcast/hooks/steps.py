"""An optimizer's steps, as its forecast hears of them."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    _global_optimizer_pre_hooks,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from weightcast.forecast import Forecast
from weightcast.hooks.curvature import Curvature
from weightcast.tensors import untraced

_STEP = Optimizer.profile_hook_step(lambda: None).__code__
"""What runs around every `step` and calls its hooks."""

_everybodys: dict[int, RemovableHandle] = {}  # the hook of all optimizers, while anyone needs it
_steps: weakref.WeakValueDictionary[int, Steps] = weakref.WeakValueDictionary()


class Steps:
    """Tells a forecast of steps: before all other hooks, and after the outermost of nested ones."""

    def __init__(self, forecast: Forecast, optimizer: Optimizer, ended: Callable[[], None]) -> None:
        self.forecast, self._ended = forecast, ended
        # SAM's own two steps are no `step`: its base takes the one that counts
        base = getattr(optimizer, "base_optimizer", None)
        bases = [base] if hasattr(optimizer, "first_step") and isinstance(base, Optimizer) else []
        if bases:
            forecast.expect_writes()
        self.unseen = 0  # steps by gradients of a forward that no hook saw
        self.is_seen = False  # whether a hook saw a training forward
        self._marks: list[tuple[weakref.ref[Tensor], int]] = []
        self._running = 0  # a subclass's step may call its parent's
        self._optimizers = [weakref.ref(o) for o in (optimizer, *bases)]
        self._handles: list[RemovableHandle] = []
        self._curvature = Curvature(forecast, optimizer)
        for one in (optimizer, *bases):
            before = one.register_step_pre_hook(self._before)
            # first of all: the others see θ, and what they write there stays
            _hooks_of(one).move_to_end(before.id, last=False)
            self._handles += [before, one.register_step_post_hook(self._after)]
        _steps.update({id(one): self for one in (optimizer, *bases)})
        if not _everybodys:
            everybodys = register_optimizer_step_pre_hook(_before_everybody)
            _everybodys[0] = everybodys
            _global_optimizer_pre_hooks.move_to_end(everybodys.id, last=False)  # type: ignore[attr-defined]

    def end(self) -> None:
        """Hear no more."""
        self._curvature.end()
        for handle in self._handles:
            handle.remove()
        for key in [key for key, steps in _steps.items() if steps is self]:
            del _steps[key]
        if not _steps and _everybodys:
            _everybodys.pop(0).remove()

    @untraced
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        forecast, closure = self.forecast, kwargs.get("closure", args[1] if len(args) > 1 else None)
        if self._running and self._is_outermost():
            self._running = 0  # one that raised never ended
        self._running += 1
        if self._running > 1:
            forecast.restore()
            return None
        if not self.is_seen and self.unseen < 2:
            self.unseen += self._has_new_gradients(optimizer)
        if self._curvature.is_wanted():
            self._curvature.hold()
            forecast.before_step(True)
        elif not forecast.steps_from_forecast or len(_hooks_of(optimizer)) > 1:
            forecast.before_step(callable(closure))
        if not callable(closure):
            return None
        if "closure" in kwargs:
            return args, {**kwargs, "closure": forecast.around(closure)}
        return (args[0], forecast.around(closure), *args[2:]), kwargs

    @untraced
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._running -= 1
        if self._running == 0:
            self.forecast.after_step()
            self._ended()

    def _has_new_gradients(self, optimizer: Optimizer) -> bool:
        """Whether there was a backward since the last step; looks, in the very first steps."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
        before = {id(reference()): version for reference, version in self._marks}
        self._marks = [(weakref.ref(grad), grad._version) for grad in grads]
        return any(before.get(id(g)) != g._version and _is_anywhere(g) for g in grads)

    def _is_outermost(self) -> bool:
        """Whether the step that begins now is within no other."""
        optimizers = {id(reference()) for reference in self._optimizers}
        frame, count = sys._getframe(), 0
        while (back := frame.f_back) is not None:
            frame = back
            if frame.f_code is _STEP:
                count += id(frame.f_locals["args"][0]) in optimizers
        return count == 1


def _is_anywhere(grad: Tensor) -> bool:
    return not grad.is_sparse and bool(grad.any())


def _hooks_of(optimizer: Optimizer) -> Any:
    return optimizer._optimizer_step_pre_hooks


def _before_everybody(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Hooks of all optimizers come before those of one: they too see θ."""
    steps = _steps.get(id(optimizer))
    if steps is None:
        base = id(getattr(optimizer, "base_optimizer", None))  # it climbs, and comes back
        for key, others in list(_steps.items()):
            others.forecast.others_stepped |= key != base
    elif len(_global_optimizer_pre_hooks) > 1:
        steps.forecast.restore()
