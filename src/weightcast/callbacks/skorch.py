"""Weight prediction as a callback of skorch's nets."""

from __future__ import annotations

from typing import Any

from skorch.callbacks import Callback

from weightcast import WeightPrediction
from weightcast.callbacks.session import Session


class SkorchCallback(Callback):
    """`weightcast.attach` to a net's module and optimizer, from fit's start to its end.

    Its arguments are parameters of the net, as scikit-learn understands them: a search may range
    over `callbacks__SkorchCallback__steps`. It records `forecast_steps` and `forecast_length` in
    the history of each epoch.

    skorch tells no callback of an exception. The next `fit` or `partial_fit` begins anew all the
    same; as a context manager (`with callback: net.fit(x, y)`) it detaches at once.

    Args:
        steps: s, as for `weightcast.attach`.
        settings: Its other keyword arguments.
    """

    def __init__(self, steps: float | None = None, **settings: Any) -> None:
        self.__dict__.update(steps=steps, **settings)
        self.session_ = Session()  # the underscore: no parameter to scikit-learn

    @property
    def predictions(self) -> list[WeightPrediction]:
        """The handle while fit runs."""
        return self.session_.predictions

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Attach."""
        self.session_.settings = self.get_params()
        self.session_.begin(net.module_, [net.optimizer_])

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        """Record."""
        for name, number in self.session_.numbers().items():
            net.history.record(name, number)

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        """Detach."""
        self.session_.end()

    def __enter__(self) -> SkorchCallback:
        return self

    def __exit__(self, *_: object) -> None:
        self.session_.end()
