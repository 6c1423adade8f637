"""The handle of weight prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from weightcast.errors import WeightcastError
from weightcast.forecast import Forecast, nothing
from weightcast.tensors import untraced


class WeightPrediction:
    """The handle that `attach` returns. It has no state of its own to checkpoint.

    A copy or a pickle of it is detached: it belongs to one model and one optimizer.
    """

    def __init__(
        self,
        forecast: Forecast,
        true_weights: Callable[[], AbstractContextManager[None]] = nullcontext,
        end: Callable[[], None] = nothing,
    ) -> None:
        """Hold the forecast, and what its hooks do; `attach` does the rest."""
        self._forecast, self._true_weights, self._end = forecast, true_weights, end

    def __repr__(self) -> str:
        optimizer = self.optimizer
        name = "detached" if optimizer is None else type(optimizer).__name__
        place = "predicted" if self.is_predicted else "true"
        return f"WeightPrediction({name}, steps={self.steps:g}, at the {place} weights)"

    def __reduce__(self) -> tuple[Any, ...]:
        return WeightPrediction, (self._forecast,)

    @property
    def optimizer(self) -> Optimizer | None:
        """Whose weights are predicted; None once detached."""
        return self._forecast.optimizer

    @property
    def steps(self) -> float:
        """How many steps to look ahead; settable at any time, in force from the next forward."""
        return self._forecast.steps

    @steps.setter
    def steps(self, value: float) -> None:
        self._forecast.steps = value

    @property
    def damped(self) -> bool:
        """Whether it walks Σ β₁ᵏ displacements instead of s."""
        return self._forecast.damped

    @property
    def weight_decay(self) -> bool:
        """Whether the forecast includes decoupled weight decay."""
        return self._forecast.weight_decay

    @property
    def is_predicted(self) -> bool:
        """Whether the parameters are at θ̂ now (which is θ itself where nothing is known yet)."""
        return self._forecast.is_predicted

    @untraced
    def predict(self) -> None:
        """Move the weights from θ to θ̂. Does nothing if they are there.

        Raises:
            WeightcastError: detached, or the optimizer is gone.
        """
        if self.optimizer is None:
            raise WeightcastError("this handle is detached; call weightcast.attach again.")
        self._forecast.predict()

    @untraced
    def restore(self) -> None:
        """Put the true weights back, bit for bit. Does nothing if they are there."""
        self._forecast.restore()

    @contextmanager
    def predicted(self) -> Iterator[WeightPrediction]:
        """Run forward and backward at θ̂; afterwards the weights are where they were, always."""
        nested = self.is_predicted
        self.predict()
        try:
            yield self
        finally:
            if not nested:
                self.restore()

    @contextmanager
    def true_weights(self) -> Iterator[WeightPrediction]:
        """θ for reading at any moment: to average, to log, to save what is read directly.

        Afterwards the weights are where they were, to the bit, and a graph that waits for its
        backward stays valid. What is written to the weights here is kept, but such a graph is not;
        a forward with gradients belongs elsewhere.
        """
        with self._true_weights():
            yield self

    def displacements(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter with its Δ: one step, of the parameter's shape (a DTensor's local shard).

        Parameters that have not been stepped yet are left out.
        """
        return self._forecast.displacements()

    def detach(self) -> None:
        """Restore the weights and remove every trace: model and optimizer are plain again."""
        self._end()
