"""Third-party optimizers: observed, registered, or refused."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import weightcast
from tests.frameworks.helpers import (
    STEPS,
    largest_difference,
    mean_square,
    network,
    problem,
    train,
    trained_by_hand,
)
from tests.frameworks.loops import Loop, batches, difference

pytestmark = [  # the packages' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("error::weightcast.PredictionWarning"),
]
EPOCHS = 2


def collection() -> list[str]:
    """The optimizers of pytorch_optimizer, found by looking."""
    package = pytest.importorskip("pytorch_optimizer")
    return sorted(
        name
        for name, cls in vars(package).items()
        if inspect.isclass(cls)
        and issubclass(cls, torch.optim.Optimizer)
        and cls.__module__.startswith("pytorch_optimizer.optimizer")
    )


def trained(make: Callable[[Any], torch.optim.Optimizer]) -> torch.nn.Module:
    model = network()
    optimizer = make(model)
    weightcast.attach(model, optimizer, STEPS)
    train(model, optimizer, EPOCHS)
    return model


def trains_plainly(make: Callable[[Any], torch.optim.Optimizer]) -> bool:
    """Whether the optimizer takes a closure-free step on small float64 matrices at all."""
    model = network()
    try:
        optimizer = make(model)
        for _ in range(3):
            optimizer.zero_grad()
            mean_square(model, *problem()).backward()
            optimizer.step()
    except Exception:
        return False
    return all(p.isfinite().all() for p in model.parameters())


@pytest.mark.cell("pytorch_optimizer", "AdaBelief, AdaBound, Yogi, Lion, Adan and the others")
def test_the_collection_is_observed() -> None:
    """As hand-written loops that measure what each step did, one optimizer after the other."""
    package = pytest.importorskip("pytorch_optimizer")
    agreed = []
    for name in collection():

        def make(model: torch.nn.Module, name: str = name) -> torch.optim.Optimizer:
            torch.manual_seed(0)
            return getattr(package, name)(model.parameters(), lr=1e-2)

        if not trains_plainly(make) or "schedulefree" in name.lower() or name == "A2Grad":
            continue  # A2Grad has no learning rate for the reference to rescale by
        try:
            ours = trained(make)
        except weightcast.UnsupportedOptimizerError:
            continue  # a wrapper that runs no hooks
        expected = trained_by_hand(EPOCHS, make=make, decoupled=False)
        assert largest_difference(ours, expected) < 1e-7, name
        agreed.append(name)
    assert {"AdaBelief", "AdaBound", "Lion", "Adan", "Yogi"} <= set(agreed)
    assert len(agreed) >= 90


@pytest.mark.parametrize("name", ["adamw", "nadamw", "lion", "adopt", "lamb"])
@pytest.mark.cell("timm", "optimizers of timm.optim")
def test_timm(name: str) -> None:
    optim = pytest.importorskip("timm.optim")

    def make(model: torch.nn.Module) -> torch.optim.Optimizer:
        return optim.create_optimizer_v2(model, opt=name, lr=1e-2, weight_decay=0.0)

    expected = trained_by_hand(EPOCHS, make=make, decoupled=False)
    assert largest_difference(trained(make), expected) < 1e-9


@pytest.mark.cell("schedule-free", "AdamWScheduleFree", "refused")
def test_schedule_free_is_refused(record_property: Callable) -> None:
    package = pytest.importorskip("schedulefree")
    model = network()
    with pytest.raises(weightcast.UnsupportedOptimizerError) as error:
        weightcast.attach(model, package.AdamWScheduleFree(model.parameters()))
    record_property("sentence", str(error.value))


@pytest.mark.cell("torch.optim", "LBFGS", "refused")
def test_lbfgs_is_refused(record_property: Callable) -> None:
    model = network()
    with pytest.raises(weightcast.UnsupportedOptimizerError) as error:
        weightcast.attach(model, torch.optim.LBFGS(model.parameters()))
    record_property("sentence", str(error.value))


@pytest.mark.cell("torch.optim", "every other optimizer, with every option")
def test_torchs_own_optimizers() -> None:
    """tests/test_rules.py has one test for each option and pair of options; this is a sample."""
    for cls in (torch.optim.Adafactor, torch.optim.NAdam, torch.optim.ASGD):

        def make(model: torch.nn.Module, cls: type = cls) -> torch.optim.Optimizer:
            return cls(model.parameters())

        expected = trained_by_hand(EPOCHS, make=make, decoupled=False)
        assert largest_difference(trained(make), expected) < 1e-9


@pytest.mark.parametrize("name", ["AdamW8bit", "Lion8bit", "PagedAdamW8bit"])
@pytest.mark.cell("bitsandbytes", "8-bit and paged optimizers")
def test_bitsandbytes(name: str) -> None:
    """The states are quantised: Δ is observed. Parameters of 4,096 elements or more are 8-bit."""
    optim = pytest.importorskip("bitsandbytes").optim

    def script(loop: Loop) -> torch.nn.Module:
        model = torch.nn.Sequential(
            torch.nn.Linear(3, 4096), torch.nn.Tanh(), torch.nn.Linear(4096, 1)
        )
        optimizer = getattr(optim, name)(model.parameters(), lr=1e-3, weight_decay=0.0)
        running = loop(model, optimizer)
        for x, y in batches():
            x, y = x.float(), y.float()
            running.iterate(lambda x=x, y=y: mean_square(model, x, y).backward())
        state = optimizer.state[model[0].weight]
        assert state["state1"].dtype is torch.uint8
        return model

    assert difference(script) < 1e-6
