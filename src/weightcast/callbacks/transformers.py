"""Weight prediction as a callback of Hugging Face's Trainer, and so of TRL's."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from weightcast import WeightPrediction
from weightcast.callbacks.session import Session


class TransformersCallback(TrainerCallback):
    """`weightcast.attach` to the optimizer that the Trainer makes, from train's start to its end.

    It adds `forecast_steps` and `forecast_length` to each log of the loss.

    A Trainer tells no callback of an exception. The next `train()` begins anew all the same; as a
    context manager (`with callback: trainer.train()`) it detaches at once.

    Args:
        steps: s, as for `weightcast.attach`.
        settings: Its other keyword arguments.
    """

    def __init__(self, steps: float | None = None, **settings: Any) -> None:
        self._session = Session(steps=steps, **settings)

    @property
    def predictions(self) -> list[WeightPrediction]:
        """The handle while train runs."""
        return self._session.predictions

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any
    ) -> None:
        """Attach."""
        self._session.begin(model, [optimizer])

    def on_log(self, args: Any, state: Any, control: Any, *, logs: Any, **_: Any) -> None:
        """Add to the log, and to the history that was written just before."""
        if "loss" in logs:
            numbers = self._session.numbers()
            logs.update(numbers)
            state.log_history[-1].update(numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Detach."""
        self._session.end()

    def __enter__(self) -> TransformersCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.end()
