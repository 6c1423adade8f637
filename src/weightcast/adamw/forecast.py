"""The forecast that `weightcast.AdamW` makes itself, as hooks see it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from weightcast.adamw.optimizer import AdamW
from weightcast.displacement.reach import STEPS, checked_steps, settings_of_groups
from weightcast.displacement.rules import rule_for
from weightcast.forecast import Forecast, nothing
from weightcast.moves.forecast import OptimizerForecast
from weightcast.moves.pause import paused


class AdamWForecast(Forecast):
    """The weights of a `weightcast.AdamW`, which moves them itself."""

    steps_from_forecast = True
    weight_decay = False

    def __init__(self, steps: float, optimizer: AdamW) -> None:
        self.damped = optimizer.damped
        self._optimizer: Callable[[], AdamW | None] = weakref.ref(optimizer)
        self._steps = checked_steps(steps, "steps", self.damped)
        self._settings_used: list[Any] = []

    def __reduce__(self) -> tuple[Any, ...]:
        detached = functools.partial(
            OptimizerForecast, damped=self.damped, weight_decay=self.weight_decay
        )
        return detached, (self.steps,)

    @property
    def optimizer(self) -> AdamW | None:
        """Whose weights these are; None once it has ended, or the optimizer is gone."""
        return self._optimizer()

    @property
    def steps(self) -> float:
        """How many steps to look ahead; they live in the optimizer's parameter groups."""
        optimizer = self._optimizer()
        return self._steps if optimizer is None else optimizer.defaults[STEPS]

    @steps.setter
    def steps(self, value: float) -> None:
        optimizer = self._optimizer()
        self._steps = checked_steps(value, "steps", self.damped)
        if optimizer is not None:
            for holder in (optimizer.defaults, *optimizer.param_groups):
                holder[STEPS] = self._steps

    @property
    def is_predicted(self) -> bool:
        """Whether the parameters are at θ̂ now."""
        optimizer = self._optimizer()
        return optimizer is not None and optimizer.is_predicted

    @property
    def backward_pending(self) -> bool:
        """Whether a backward may wait for θ̂; not after a step that ends there, until a forward."""
        optimizer = self._optimizer()
        return optimizer is not None and optimizer.backward_pending

    def predict(self) -> None:
        """Move the weights to θ̂, as `AdamW.train`."""
        if (optimizer := self._optimizer()) is not None:
            groups = optimizer.param_groups
            settings = settings_of_groups(groups, self.steps, self.damped)
            if not self.backward_pending or settings != self._settings_used:
                self._settings_used = settings
                optimizer.train()

    def restore(self) -> None:
        """Put the true weights back, as `AdamW.eval`."""
        if (optimizer := self._optimizer()) is not None:
            was_pending = self.backward_pending
            optimizer.eval()
            if was_pending:
                self.interrupted()

    def pause(self, for_reading: bool = False) -> Callable[[], None]:
        """Put θ back for an evaluation, or for reading; gives what to call after it."""
        used = self._settings_used
        optimizer = self._optimizer()
        resumed = nothing if optimizer is None else optimizer.note_writes
        return paused(self, for_reading, lambda: used == self._settings_used, resumed)

    def before_step(self, has_closure: bool) -> None:
        """Put θ back where others look at it; else the step goes on from θ̂."""
        if (optimizer := self._optimizer()) is not None:
            optimizer.eval()

    def introduce(self, about: str) -> None:
        """What every warning ends with: of which model and optimizer it is."""
        if (optimizer := self._optimizer()) is not None:
            optimizer.introduce(about)

    def expect_writes(self) -> None:
        """It looks."""

    def around(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """It knows."""
        return closure

    def after_step(self) -> None:
        """It knows."""

    def state_loaded(self) -> None:
        """Steps are among what is loaded, as other hyper-parameters are."""

    def state_replaced(self) -> None:
        """Put θ back."""
        self.restore()

    def displacements(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter with its Δ, as far as it is known."""
        if (optimizer := self._optimizer()) is not None:
            rule = rule_for(optimizer)
            yield from OptimizerForecast(self.steps, optimizer, rule).displacements()

    def end(self) -> None:
        """Put θ back, and let go of the optimizer."""
        self.restore()
        self._steps, self._optimizer = self.steps, nothing
