"""What a forecast is, whoever makes it: all that hooks and the handle may ask of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def nothing() -> None:
    """Do nothing; as a reference, to nothing."""


class Forecast(ABC):
    """The weights of one optimizer, there and back. It holds the optimizer weakly.

    A copy or a pickle of it has no optimizer: it keeps the settings alone.
    """

    damped: bool
    weight_decay: bool
    steps_from_forecast = False
    """Whether the optimizer's step goes on from θ̂ itself: θ comes back where others would see."""
    others_stepped = False
    """Whether some other optimizer has taken a step, perhaps on these very weights."""
    interrupted: Callable[[], None] = staticmethod(nothing)
    """To be called where θ comes back before a step: a backward may still wait for θ̂."""

    @property
    @abstractmethod
    def steps(self) -> float:
        """How many steps to look ahead."""

    @steps.setter
    @abstractmethod
    def steps(self, value: float) -> None: ...

    @property
    @abstractmethod
    def optimizer(self) -> Optimizer | None:
        """Whose weights these are; None once it has ended, or the optimizer is gone."""

    @property
    @abstractmethod
    def is_predicted(self) -> bool:
        """Whether the parameters are at θ̂ now (which is θ itself where nothing is known yet)."""

    @property
    @abstractmethod
    def backward_pending(self) -> bool:
        """Whether a backward may wait for θ̂."""

    @abstractmethod
    def predict(self) -> None:
        """Move the weights from θ to θ̂. Does nothing if they are there."""

    @abstractmethod
    def restore(self) -> None:
        """Put θ back, bit for bit. Does nothing if it is there."""

    @abstractmethod
    def pause(self, for_reading: bool = False) -> Callable[[], None]:
        """Put θ back for an evaluation, or for reading; gives what to call after it."""

    @abstractmethod
    def before_step(self, has_closure: bool) -> None:
        """The optimizer is about to update: θ has to be there."""

    @abstractmethod
    def introduce(self, about: str) -> None:
        """What every warning ends with: of which model and optimizer it is."""

    @abstractmethod
    def expect_writes(self) -> None:
        """The optimizer climbs from the forecast, and comes back, before it steps."""

    @abstractmethod
    def around(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The optimizer is about to step with a closure: this one in its place runs at θ̂."""

    @abstractmethod
    def after_step(self) -> None:
        """The optimizer has updated θ."""

    @abstractmethod
    def state_replaced(self) -> None:
        """The optimizer is about to load another state."""

    @abstractmethod
    def state_loaded(self) -> None:
        """The optimizer has loaded it."""

    @abstractmethod
    def displacements(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter with its Δ, as far as it is known."""

    @abstractmethod
    def end(self) -> None:
        """Put θ back, and let go of everything."""
