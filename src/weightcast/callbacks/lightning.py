"""Weight prediction as a callback of Lightning's Trainer."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback
except ImportError:  # the same package under its other name
    from pytorch_lightning import Callback

from weightcast import WeightPrediction
from weightcast.callbacks.session import Session


class LightningCallback(Callback):
    """`weightcast.attach` for every optimizer of a LightningModule, from fit's start to its end.

    It logs `forecast_steps` and `forecast_length` as often as the Trainer logs.

    Args:
        steps: s, as for `weightcast.attach`.
        settings: Its other keyword arguments.
    """

    def __init__(self, steps: float | None = None, **settings: Any) -> None:
        self._session = Session(steps=steps, **settings)

    @property
    def predictions(self) -> list[WeightPrediction]:
        """The handles while fit runs, one per optimizer."""
        return self._session.predictions

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach."""
        self._session.begin(pl_module, trainer.optimizers)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Log."""
        every = trainer.log_every_n_steps
        if every and trainer.global_step % every == 0:
            pl_module.log_dict(self._session.numbers())

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Put θ back: others swap weights now, perhaps in the middle of an accumulation."""
        self._session.restore()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Put θ back: others average now."""
        self._session.restore()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Detach, before the Trainer moves the model off its device."""
        self._session.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Detach."""
        self._session.end()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Detach, where there was nothing to train."""
        self._session.end()
