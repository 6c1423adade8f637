"""SkorchCallback: the recipe, to the bit, and a part of scikit-learn's estimators."""

import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightcast
import weightcast.callbacks
from tests.frameworks.callbacks import Interrupted, interrupted_at, traces
from tests.frameworks.helpers import (
    BATCH,
    LR,
    STEPS,
    adamw,
    largest_difference,
    mean_square,
    network,
    problem,
    trained_by_hand,
)
from tests.frameworks.loops import Written, batches
from tests.frameworks.test_trainers import EPOCHS
from tests.helpers import same, weights

pytestmark = [  # the frameworks' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("error::weightcast.PredictionWarning"),
]
CALLBACK = "`SkorchCallback`"


def for_skorch(**options: Any) -> Any:
    pytest.importorskip("skorch")
    from weightcast.callbacks import SkorchCallback

    return SkorchCallback(STEPS, **options)


def net_of(*callbacks: Any, max_epochs: int = EPOCHS, **options: Any) -> Any:
    skorch = pytest.importorskip("skorch")
    usual = {
        "criterion": nn.MSELoss,
        "optimizer": torch.optim.AdamW,
        "lr": LR,
        "batch_size": BATCH,
        "train_split": None,
        "verbose": 0,
    }
    callbacks = list(callbacks)
    return skorch.NeuralNetRegressor(
        Network, max_epochs=max_epochs, callbacks=callbacks, **(usual | options)
    )


class Network(nn.Module):
    """A class, as skorch wants it, of the usual network."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.cell("skorch", "fit", CALLBACK)
def test_skorch_callback_is_the_recipe() -> None:
    """R21: its steps have closures."""
    callbacks = pytest.importorskip("skorch.callbacks")

    class Recipe(callbacks.Callback):
        def on_train_begin(self, net: Any, *_: Any, **__: Any) -> None:
            weightcast.attach(net.module_, net.optimizer_, STEPS)

    net, recipe = net_of(for_skorch()), net_of(Recipe())
    net.fit(*problem())
    recipe.fit(*problem())
    assert same(weights(net.module_), weights(recipe.module_))
    assert largest_difference(net.module_, trained_by_hand(EPOCHS)) < 1e-14
    assert not traces(net.module_, net.optimizer_)
    net.fit(*problem())  # from the beginning
    assert largest_difference(net.module_, trained_by_hand(EPOCHS)) < 1e-14


@pytest.mark.cell("skorch", "partial_fit", CALLBACK)
def test_skorch_callback_goes_on() -> None:
    """The state of the optimizer tells the first forecast of the next part."""
    net = net_of(for_skorch(), max_epochs=1)
    for _ in range(EPOCHS):
        net.partial_fit(*problem())
        assert not traces(net.module_, net.optimizer_)
    assert largest_difference(net.module_, trained_by_hand(EPOCHS)) < 1e-14


def test_skorch_callback_records() -> None:
    net = net_of(for_skorch())
    net.fit(*problem())
    assert net.history[:, "forecast_steps"] == [STEPS] * EPOCHS
    assert min(net.history[:, "forecast_length"]) > 0
    net = net_of(for_skorch(damped=True))
    net.fit(*problem())
    assert "forecast_length" not in net.history[-1]


@pytest.mark.cell("skorch", "GridSearchCV over the steps, Checkpoint, pickle", CALLBACK)
def test_skorch_callback_is_an_estimators_part(tmp_path: Path) -> None:
    """Searched, cloned, and pickled in the middle of training."""
    search = pytest.importorskip("sklearn.model_selection").GridSearchCV
    callbacks = pytest.importorskip("skorch.callbacks")
    saver = callbacks.Checkpoint(dirname=tmp_path, f_pickle="net.pkl", monitor=None)
    x, y = (t.numpy() for t in problem())
    grid = {"callbacks__SkorchCallback__steps": [0, STEPS]}
    found = search(net_of(for_skorch(), saver), grid, cv=2, refit=False, error_score="raise")
    found.fit(x, y)
    scores = found.cv_results_["mean_test_score"]
    assert scores[0] != scores[1]
    net = net_of(for_skorch(), saver)
    net.fit(x, y)
    assert largest_difference(net.module_, trained_by_hand(EPOCHS)) < 1e-14
    with open(tmp_path / "net.pkl", "rb") as file:
        loaded = pickle.load(file)
    assert same(weights(loaded.module_), weights(net.module_))
    assert not traces(loaded.module_, loaded.optimizer_)
    loaded.partial_fit(x, y)
    assert largest_difference(loaded.module_, trained_by_hand(2 * EPOCHS)) < 1e-14


@pytest.mark.cell("skorch", "an exception in fit", f"{CALLBACK}, in a `with`")
@pytest.mark.parametrize("way", ["with", "the next partial_fit"])
def test_skorch_callback_on_an_exception(way: str) -> None:
    """R5: skorch tells no callback of it."""
    callback = for_skorch()
    net = net_of(callback, max_epochs=1).initialize()
    interrupt = net.module_.register_forward_hook(interrupted_at(2))
    with pytest.raises(Interrupted), callback if way == "with" else nullcontext():
        net.partial_fit(*problem())
    interrupt.remove()
    assert bool(traces(net.module_, net.optimizer_)) is (way != "with")
    net.partial_fit(*problem())
    assert not traces(net.module_, net.optimizer_)
    expected = network()
    running = Written(expected, adamw(expected))
    for x, y in [next(batches(1)), *batches(1)]:
        running.iterate(lambda x=x, y=y: mean_square(expected, x, y).backward())
    assert largest_difference(net.module_, expected) < 1e-14


def test_a_framework_is_imported_only_when_its_callback_is_asked_for() -> None:
    """weightcast itself needs torch alone."""
    code = (
        "import sys, weightcast.callbacks as c; "
        "sys.exit(bool({'lightning', 'skorch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="KerasCallback"):
        weightcast.callbacks.KerasCallback  # noqa: B018
