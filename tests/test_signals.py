"""A signal at any line of the library, in turn: θ is never lost (invariant 9)."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import weightcast
from tests.helpers import Recorder, attached, backward, data, same, weights

OWN = [{}, {"in_step": True}]


def interrupted_everywhere(act, check, module: str) -> int:
    """Run `act` with a signal at every line of the library in turn; `check` after each."""
    count = 0
    while True:
        seen = 0

        def tracer(frame, event, arg, last=count):
            nonlocal seen
            if module not in frame.f_code.co_filename:
                return tracer if "weightcast" in frame.f_code.co_filename else None
            if event == "line":
                seen += 1
                if seen > last:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return tracer

        sys.settrace(tracer)
        try:
            act()
        except KeyboardInterrupt:
            pass
        else:
            return count
        finally:
            sys.settrace(None)
            # a tracer can raise as a `with` is being left, before its end: a signal cannot
            torch.set_grad_enabled(True)
        check()
        count += 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("act", ["predict", "restore"])
@pytest.mark.parametrize("own", [None, *OWN], ids=["attach", "lazy", "in step"])
def test_a_signal_at_any_line_loses_nothing(own, act: str, dtype: torch.dtype) -> None:
    cls, options = (torch.optim.AdamW, {}) if own is None else (weightcast.AdamW, own)
    model, optimizer, prediction = attached(cls, dtype=dtype, **options)
    other = torch.float32 if dtype is torch.float64 else torch.float64
    model.add_module("extra", nn.Linear(2, 2, dtype=other))
    optimizer.param_groups[0]["params"] += model.extra.parameters()  # a group of several dtypes
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    prediction.restore()
    theta = weights(model)
    is_exact = own is None or "in_step" not in own
    tolerance = {"rtol": 0, "atol": 0} if is_exact else {"rtol": 1e-6, "atol": 1e-7}

    def check() -> None:
        prediction.restore()
        assert not prediction.is_predicted
        for p, t in zip(model.parameters(), theta, strict=True):
            torch.testing.assert_close(p.detach(), t, **tolerance)
        if act == "restore":
            prediction.predict()

    if act == "restore":
        prediction.predict()
    lines = interrupted_everywhere(getattr(prediction, act), check, "weightcast/")
    assert lines > 30
    prediction.restore()
    for p, t in zip(model.parameters(), theta, strict=True):
        torch.testing.assert_close(p.detach(), t, **tolerance)


def evaluate(model: nn.Module) -> None:
    with torch.no_grad():
        model.eval()(data(model))


def read(prediction: weightcast.WeightPrediction) -> None:
    with prediction.true_weights():
        pass


ACTS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "a forward": lambda model, optimizer, prediction: model(data(model)),
    "an evaluation": lambda model, optimizer, prediction: evaluate(model),
    "true_weights": lambda model, optimizer, prediction: read(prediction),
    "state_dict": lambda model, optimizer, prediction: model.state_dict(),
}


@pytest.mark.filterwarnings("ignore:weight prediction moves no parameter")  # Δ may be lost
@pytest.mark.parametrize("act", ACTS)
def test_a_signal_within_what_hooks_do_loses_nothing(act: str) -> None:
    """Begun at the forecast, with a backward that waits, but for the forward that leads there."""
    model, optimizer, prediction = attached(torch.optim.NAdam)
    prediction.restore()
    theta = weights(model)

    def begin() -> None:
        model.train()
        if act != "a forward":
            model(data(model))

    def check() -> None:
        prediction.restore()
        assert same(weights(model), theta)
        begin()

    begin()
    lines = interrupted_everywhere(
        lambda: ACTS[act](model, optimizer, prediction), check, "weightcast/"
    )
    assert lines > 20
    check()


@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adagrad])
def test_a_signal_within_a_step_leaves_it_taken_or_not(cls: type, with_closure: bool) -> None:
    """As a plain optimizer's, beside it, with the same gradient."""
    model, optimizer, prediction = attached(cls, iterations=1)
    twin = Recorder()
    other = cls(twin.parameters(), lr=0.05)
    ends: list[list] = []

    def begin() -> None:
        """The plain step, from where the attached one is to begin."""
        prediction.restore()
        optimizer.zero_grad()
        backward(model)
        gradients = [p.grad.clone() for p in model.parameters()]
        twin.load_state_dict(model.state_dict())
        state = copy.deepcopy(optimizer.state_dict())
        for one in state["state"].values():
            one.pop("prediction_displacement", None)
        other.load_state_dict(state)
        for p, gradient in zip(twin.parameters(), gradients, strict=True):
            p.grad = gradient
        ends[:] = [weights(twin)]
        other.step()
        ends.append(weights(twin))

    def check() -> None:
        prediction.restore()
        assert any(same(weights(model), end) for end in ends)
        begin()

    def closure() -> None:
        """The gradient is there; this is about the moves around it."""

    begin()
    lines = interrupted_everywhere(
        lambda: optimizer.step(closure) if with_closure else optimizer.step(), check, "weightcast/"
    )
    assert lines > 20
    prediction.restore()
    assert same(weights(model), ends[1])
