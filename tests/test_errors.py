"""A foreseeable mistake gets one sentence that says what to do; a silent no-op is reported."""

import math
import re
import warnings

import pytest
import torch

import weightcast
from tests.helpers import (
    ANALYTIC_AND_OBSERVED,
    Recorder,
    attached,
    backward,
    data,
    kind_id,
    same,
    train,
    weights,
)


def pair() -> tuple[Recorder, torch.optim.Optimizer]:
    model = Recorder()
    return model, torch.optim.AdamW(model.parameters())


@pytest.mark.parametrize("steps", [math.nan, math.inf, -math.inf, 101, -100.5, 1e300])
def test_absurd_steps_are_refused(steps: float) -> None:
    """R31: everywhere that steps come in."""
    message = re.escape(f"between -100 and 100 (1 to 3 is usual), got {steps!r}")
    model, optimizer = pair()
    with pytest.raises(weightcast.InvalidArgumentError, match=message):
        weightcast.attach(model, optimizer, steps)
    prediction = weightcast.attach(model, optimizer, 2)
    with pytest.raises(ValueError, match=message):
        prediction.steps = steps
    assert prediction.steps == 2
    prediction.detach()
    optimizer.param_groups[0]["prediction_steps"] = steps
    with pytest.raises(ValueError, match="a group's prediction_steps.*" + message):
        weightcast.attach(model, optimizer)


@pytest.mark.parametrize("steps", ["3", True, 1j, [3]])
def test_steps_that_are_no_number_are_refused(steps: object) -> None:
    model, optimizer = pair()
    with pytest.raises(TypeError, match=r"steps must be a number, got"):
        weightcast.attach(model, optimizer, steps)


def test_a_group_with_bad_steps_in_mid_training_loses_nothing() -> None:
    model, optimizer, prediction = attached()
    theta = weights(model)
    optimizer.param_groups[0]["prediction_steps"] = math.nan
    with pytest.raises(ValueError, match="prediction_steps"):
        model(data(model))
    assert same(weights(model), theta)
    optimizer.param_groups[0]["prediction_steps"] = 1
    model(data(model))
    assert prediction.is_predicted


def test_infinite_steps_are_fine_where_they_decay() -> None:
    model, _, prediction = attached(steps=math.inf, attach={"damped": True})
    deltas = dict(prediction.displacements())
    theta = weights(model)
    with prediction.predicted():
        for p, true in zip(model.parameters(), theta, strict=True):
            torch.testing.assert_close(p.detach(), true - 9 * deltas[p])


def test_damped_needs_a_momentum() -> None:
    model = Recorder()
    optimizer = torch.optim.Adagrad(model.parameters())
    with pytest.raises(ValueError, match=r"damped=True needs an optimizer with betas or moment"):
        weightcast.attach(model, optimizer, damped=True)
    weightcast.attach(model, optimizer)  # the refused attempt left nothing behind


def test_what_is_no_model_or_optimizer_is_refused() -> None:
    model, optimizer = pair()
    with pytest.raises(TypeError, match=r"model must be an unscripted Module, got AdamW"):
        weightcast.attach(optimizer, model)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got list"):
        weightcast.attach(model, [optimizer])


def test_the_optimizer_inside_a_frameworks_wrapper_is_attached() -> None:
    """Accelerate's wrapper is an Optimizer by type, but has none of its hooks."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    model, optimizer = pair()
    prediction = weightcast.attach(model, Wrapper(optimizer), 2)
    train(model, optimizer)
    model(data(model))
    assert prediction.is_predicted
    assert repr(prediction) == "WeightPrediction(AdamW, steps=2, at the predicted weights)"


def test_a_model_without_parameters_is_refused() -> None:
    _, optimizer = pair()
    with pytest.raises(ValueError, match=r"the model \(ReLU\) has no parameters"):
        weightcast.attach(torch.nn.ReLU(), optimizer)


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    """R24: ZeRO, master weights and other back-ends that train a copy."""
    model, _ = pair()
    copies = [p.detach().clone().requires_grad_() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"none of the optimizer's parameters belongs to the mode"):
        weightcast.attach(model, torch.optim.AdamW(copies))


def test_attaching_twice_is_refused() -> None:
    model, optimizer = pair()
    prediction = weightcast.attach(model, optimizer, 2)
    with pytest.raises(ValueError, match=r"attached to these parameters already; call detach"):
        weightcast.attach(model, optimizer, 3)
    with pytest.raises(ValueError, match="already"):
        weightcast.attach(model, torch.optim.SGD(model.first.parameters(), lr=0.1))
    assert len(model._forward_pre_hooks) == 1
    prediction.detach()
    weightcast.attach(model, optimizer, 3)


@pytest.mark.parametrize(("rule", "error"), [("obsreved", ValueError), (3, TypeError)])
def test_an_unknown_rule_is_refused(rule: object, error: type) -> None:
    model, optimizer = pair()
    with pytest.raises(error, match=r"rule must be None, 'observed' or a function, got"):
        weightcast.attach(model, optimizer, rule=rule)


def test_a_rule_of_the_wrong_shape_is_refused_and_nothing_is_lost() -> None:
    model, optimizer = pair()

    def wrong(state: dict, group: dict) -> torch.Tensor:
        return state["exp_avg"].sum()

    weightcast.attach(model, optimizer, rule=wrong)
    train(model, optimizer, 1)
    theta = weights(model)
    with pytest.raises(ValueError, match=r"rule 'wrong' returned a displacement of shape \(\) for"):
        model(data(model))
    assert same(weights(model), theta)


def test_a_failure_half_way_moves_everything_back() -> None:
    model, optimizer = pair()

    def failing(state: dict, group: dict) -> torch.Tensor:
        if state["exp_avg"].shape == (1,):
            raise MemoryError
        return group["lr"] * state["exp_avg"]

    prediction = weightcast.attach(model, optimizer, rule=failing)
    train(model, optimizer, 1)
    theta = weights(model)
    with pytest.raises(MemoryError):
        model(data(model))
    assert same(weights(model), theta)
    assert not prediction.is_predicted


def test_a_rule_given_as_a_function() -> None:
    model, optimizer = pair()

    def momentum_only(state: dict, group: dict) -> torch.Tensor:
        return group["lr"] * state["exp_avg"]

    prediction = weightcast.attach(model, optimizer, steps=5, rule=momentum_only)
    train(model, optimizer, 1)
    theta = weights(model)
    with prediction.predicted():
        for p, true in zip(model.parameters(), theta, strict=True):
            expected = true - 5 * 1e-3 * optimizer.state[p]["exp_avg"]
            torch.testing.assert_close(p.detach(), expected)


def test_unsupported_optimizers_are_refused_by_name() -> None:
    class AdamWScheduleFree(torch.optim.AdamW):
        pass

    model = Recorder()
    with pytest.raises(TypeError, match=r"LBFGS evaluates the loss many times"):
        weightcast.attach(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(weightcast.UnsupportedOptimizerError, match=r"AdamWScheduleFree already"):
        weightcast.attach(model, AdamWScheduleFree(model.parameters()))


def test_an_optimizer_without_hooks_is_refused() -> None:
    """Some wrappers imitate an Optimizer without being initialised as one."""

    class Imitation(torch.optim.Optimizer):
        def __init__(self) -> None:
            self._optimizer_step_pre_hooks = {}

    class Empty(torch.optim.Optimizer):
        def __init__(self) -> None:
            pass

    for imitation in (Imitation(), Empty()):
        with pytest.raises(weightcast.UnsupportedOptimizerError, match="and so runs no hooks"):
            weightcast.attach(Recorder(), imitation)


def test_every_error_is_a_weightcast_error() -> None:
    for error, builtin in [
        (weightcast.InvalidArgumentError, ValueError),
        (weightcast.InvalidTypeError, TypeError),
        (weightcast.UnsupportedOptimizerError, TypeError),
    ]:
        assert issubclass(error, weightcast.WeightcastError)
        assert issubclass(error, builtin)


# --- invariant 6: what would silently do nothing is reported, once -------------------------------


def reports(action: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    assert all(w.category is weightcast.PredictionWarning for w in caught)
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("why", ["another module is called", "eval mode", "an idle closure"])
def test_a_forward_that_is_never_called_is_reported_once(why: str) -> None:
    model, optimizer = pair()
    weightcast.attach(model, optimizer)
    if why == "eval mode":
        model.eval()

    def loop() -> None:
        for _ in range(5):
            optimizer.zero_grad()
            if why == "eval mode":
                backward(model)
            else:
                model.second(torch.tanh(model.first(data(model)))).sum().backward()
            optimizer.step(*([lambda: None] if why == "an idle closure" else []))

    (message,) = reports(loop)
    assert "with prediction.predicted():" in message
    assert "without a training-mode forward of the attached module" in message


@pytest.mark.parametrize("loop", ["closure", "context manager", "steps=0", "mid-iteration"])
def test_loops_that_predict_are_not_reported(loop: str, silent: None) -> None:
    model, optimizer = pair()
    if loop == "mid-iteration":
        backward(model)
    prediction = weightcast.attach(model, optimizer, steps=0 if loop == "steps=0" else 1)

    def forward_backward() -> None:
        model.second(torch.tanh(model.first(data(model)))).sum().backward()

    if loop == "mid-iteration":
        optimizer.step()
        train(model, optimizer)
    for _ in range(4 if loop != "mid-iteration" else 0):
        if loop == "closure":
            optimizer.step(forward_backward)
            continue
        if loop == "context manager":
            with prediction.predicted():
                forward_backward()
        else:
            forward_backward()
        optimizer.step()


def test_a_prediction_that_moves_nothing_is_reported_once() -> None:
    """R24: the optimizer's state for these parameters is empty or of size zero."""

    class Elsewhere(torch.optim.SGD):
        def step(self, closure=None):
            pass

    model = Recorder()
    optimizer = Elsewhere(model.parameters(), lr=0.1, momentum=0.9)
    weightcast.attach(model, optimizer, rule=lambda state, group: state["buffer"])
    (message,) = reports(lambda: train(model, optimizer, 5))
    assert "moves no parameter" in message
    assert "ZeRO" in message


@pytest.mark.parametrize("kind", ANALYTIC_AND_OBSERVED, ids=kind_id)
@pytest.mark.parametrize("notices", ["forward", "evaluation"])
def test_weights_that_others_train_are_reported_once(kind: dict, notices: str) -> None:
    """A second optimizer, while a scheduler, say, keeps the first alive: θ would come back."""
    model, optimizer, prediction = attached(**kind)
    train(model, optimizer)
    other = torch.optim.SGD(model.parameters(), lr=0.1)

    def loop() -> None:
        for _ in range(2):
            backward(model)
            other.step()
            if notices == "evaluation":
                model.eval()(data(model))
                model.train()

    (message,) = reports(loop)
    assert "written to while they were predicted" in message
    assert "detach()" in message
    prediction.detach()
    before = weights(model)
    backward(model)
    other.step()
    assert not same(weights(model), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_too_coarse_for_the_displacement_are_reported_once(dtype: torch.dtype) -> None:
    """R28: measured at the first real forecast."""
    model = torch.nn.Linear(3, 50, dtype=dtype)
    torch.nn.init.constant_(model.weight, 8.0)
    torch.nn.init.constant_(model.bias, 8.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-4)
    weightcast.attach(model, optimizer, 1)
    (message,) = reports(lambda: train(model, optimizer, 4))
    assert re.search(r"(100|9\d)% of the low-precision weights are too coarse", message)
    assert "float32 parameters under autocast" in message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fine_weights_are_not_reported(dtype: torch.dtype, silent: None) -> None:
    """Nor is an embedding most of whose rows have no displacement at all."""
    embedding = torch.nn.Embedding(1000, 4, dtype=dtype)
    torch.nn.init.constant_(embedding.weight, 0.01)
    optimizer = torch.optim.AdamW(embedding.parameters(), lr=1e-2)
    weightcast.attach(embedding, optimizer, 1)
    for _ in range(4):
        embedding(torch.tensor([1, 2])).float().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_steps_that_come_and_go_are_not_reported(optimizer_class: type, silent: None) -> None:
    model = torch.nn.Linear(3, 1)
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    prediction = weightcast.attach(model, optimizer, steps=0)
    for steps in (0, 0, 0, 3, 3, 0, 0, 3):
        prediction.steps = steps
        optimizer.zero_grad()
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
