"""`attach` on `weightcast.AdamW`."""

from __future__ import annotations

from collections.abc import Callable

from weightcast.adamw import AdamW
from weightcast.distance import STEPS, checked_steps
from weightcast.prediction import WeightPrediction


class AdamWPrediction(WeightPrediction):
    """What `attach` returns for `AdamW`, which moves the weights itself."""

    _optimizer: Callable[[], AdamW | None]
    _hears_of_steps = False

    @property
    def steps(self) -> float:
        """As `WeightPrediction.steps`; they live in the optimizer's parameter groups."""
        optimizer = self._optimizer()
        return self._steps if optimizer is None else optimizer.defaults[STEPS]

    @steps.setter
    def steps(self, value: float) -> None:
        optimizer = self._optimizer()
        self._steps = checked_steps(value, "steps", self.decaying)
        if optimizer is not None:
            for holder in (optimizer.defaults, *optimizer.param_groups):
                holder[STEPS] = self._steps

    @property
    def is_predicted(self) -> bool:
        """Whether the parameters are at θ̂ now."""
        optimizer = self._optimizer()
        return optimizer is not None and optimizer.is_predicted

    @property
    def _is_awaited(self) -> bool:
        """Not between an eager step and the next training forward."""
        optimizer = self._optimizer()
        return optimizer is not None and optimizer._unused < 0 and optimizer.is_predicted

    def predict(self) -> None:
        """Move the weights to θ̂, as `AdamW.train`."""
        optimizer = self._attached()
        assert isinstance(optimizer, AdamW)
        settings = self._settings(optimizer)
        if not self._is_awaited or settings != self._settings_used:
            self._settings_used = settings
            optimizer.train()

    def restore(self) -> None:
        """Put the true weights back, as `AdamW.eval`."""
        if (optimizer := self._optimizer()) is not None:
            optimizer.eval()
