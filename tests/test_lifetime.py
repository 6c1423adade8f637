"""Memory and lifetimes: nothing is kept alive, nothing is allocated in the loop."""

import gc
import weakref

import pytest
import torch

import weightcast
from tests.helpers import (
    ANALYTIC_AND_OBSERVED,
    Recorder,
    attached,
    data,
    kind_id,
    same,
    train,
    weights,
)

KINDS = pytest.mark.parametrize("kind", ANALYTIC_AND_OBSERVED, ids=kind_id)


@KINDS
@pytest.mark.parametrize("hold", ["nothing", "the handle"])
def test_a_dropped_model_and_optimizer_are_freed(kind: dict, hold: str) -> None:
    """At once, by reference count: no cycle holds the weights until the next collection."""
    attached(**kind)  # torch imports what this optimizer needs: a failed import keeps its frames
    gc.collect()
    gc.disable()
    try:
        model, optimizer, prediction = attached(**kind)
        references = [weakref.ref(t) for t in (model, optimizer, model.first.weight)]
        if hold == "nothing":
            del prediction
        del model, optimizer
        assert [reference() for reference in references] == [None] * 3
    finally:
        gc.enable()


def test_the_optimizer_does_not_keep_the_model_nor_the_model_the_optimizer() -> None:
    model, optimizer, _ = attached()
    reference = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert reference() is None
    other, kept, _ = attached()
    reference = weakref.ref(other)
    del other
    gc.collect()
    assert reference() is None
    kept.step()
    model(data(model))


@KINDS
def test_an_optimizer_lost_at_the_forecast_leaves_the_true_weights(kind: dict) -> None:
    """A part that goes on in another network must not get its old weights back later."""
    model, optimizer, prediction = attached(**kind)
    part, theta = model.first, weights(model.first)
    model(data(model))
    assert not same(weights(part), theta)
    del optimizer
    assert same(weights(part), theta)
    assert not prediction.is_predicted
    del model
    torch.nn.init.zeros_(part.weight)
    assert not part.state_dict()["weight"].any()


def test_a_rule_may_hold_the_optimizer() -> None:
    """Both are freed all the same, by the garbage collector."""
    model = Recorder()
    optimizer = torch.optim.AdamW(model.parameters())
    reference = weakref.ref(optimizer)

    def rule(state: dict, group: dict, own: torch.optim.Optimizer = optimizer) -> torch.Tensor:
        return own.defaults["lr"] * state["exp_avg"]

    weightcast.attach(model, optimizer, rule=rule)
    train(model, optimizer)
    del model, optimizer, rule
    gc.collect()
    assert reference() is None


@KINDS
def test_one_buffer_of_the_size_of_each_parameter(kind: dict) -> None:
    """R26: +1x the parameters, for an observed rule too, and the same memory in every step."""
    model, optimizer, prediction = attached(**kind, iterations=4)

    def buffers() -> set[int]:
        own = {s["prediction_displacement"] for s in states() if "prediction_displacement" in s}
        moved = {b for m in prediction._forecast.moved for b in m.saved}
        held = {*own, *moved, *prediction._forecast.memory.values()}
        return {b.data_ptr() for b in held}

    def states() -> list[dict]:
        return [optimizer.state[p] for p in model.parameters()]

    first = buffers()
    assert len(first) == len(list(model.parameters()))
    train(model, optimizer, 3)
    assert buffers() == first
    model(data(model))
    assert buffers() == first


def test_steps_zero_costs_no_memory() -> None:
    for optimizer_class in (torch.optim.AdamW, torch.optim.SGD):
        _model, optimizer, prediction = attached(optimizer_class, steps=0)
        assert not prediction._forecast.memory
        assert not any("prediction_displacement" in s for s in optimizer.state.values())


def test_switching_to_zero_steps_forgets_an_observed_displacement() -> None:
    """An old displacement is not taken for the last one when prediction comes back."""
    model, optimizer, prediction = attached(torch.optim.SGD)
    prediction.steps = 0
    train(model, optimizer)
    assert list(prediction.displacements()) == []


def test_attaching_a_thousand_times_leaves_one_hook() -> None:
    model = Recorder()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(1000):
        prediction = weightcast.attach(model, optimizer)
        prediction.detach()
    weightcast.attach(model, optimizer)
    assert len(model._forward_pre_hooks) == 1
    assert len(optimizer._optimizer_step_pre_hooks) == 1
