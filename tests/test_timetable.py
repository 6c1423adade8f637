"""When the weights are where: the timetable of `weightcast.hooks.timetable`, and its invariants."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import weightcast
from tests.helpers import (
    ANALYTIC_AND_OBSERVED,
    Recorder,
    attached,
    backward,
    data,
    every_parameter,
    forecast,
    kind_id,
    same,
    train,
    weights,
)
from weightcast.moves import plans
from weightcast.moves.passes import Way

KINDS = pytest.mark.parametrize("kind", ANALYTIC_AND_OBSERVED, ids=kind_id)


def half_safe(kind: dict, dtype: torch.dtype) -> dict:
    """An ε that float16 can represent."""
    has_eps = kind["optimizer_class"] is not torch.optim.SGD
    return {**kind, "eps": 1e-4} if dtype == torch.float16 and has_eps else kind


@KINDS
def test_training_forward_runs_at_the_forecast(kind: dict) -> None:
    model, _, prediction = attached(**kind, steps=2)
    theta, expected = weights(model), forecast(prediction, model, 2)
    model(data(model))
    assert prediction.is_predicted
    for seen, hat, true in zip(model.seen[-1], expected, theta, strict=True):
        torch.testing.assert_close(seen, hat, rtol=0, atol=1e-14)
        assert not torch.equal(seen, true)
    prediction.restore()
    assert same(weights(model), theta)


@KINDS
def test_micro_batches_share_one_forecast(kind: dict) -> None:
    """R4: no second move within an accumulation."""
    model, optimizer, _ = attached(**kind)
    for seed in range(3):
        backward(model, seed)
    assert same(model.seen[0], model.seen[1])
    assert same(model.seen[0], model.seen[2])
    optimizer.step()
    model(data(model))
    assert not same(model.seen[0], model.seen[3])


@KINDS
@pytest.mark.parametrize("way", ["enable_grad", "no_grad", "inference_mode"])
def test_evaluation_sees_the_true_weights(kind: dict, way: str) -> None:
    """R6, also straight after a training forward; with gradients it may have a graph of its own."""
    model, _, prediction = attached(**kind)
    theta = weights(model)
    with getattr(torch, way)():
        model.eval()(data(model))
    assert not prediction.is_predicted
    model.train()(data(model))
    with getattr(torch, way)():
        model.eval()(data(model))
    for index in (0, 2):
        assert same(model.seen[index], theta)
    assert prediction.is_predicted is (way != "enable_grad")
    prediction.restore()
    assert same(weights(model), theta)


@KINDS
@pytest.mark.parametrize("way", ["no_grad", "inference_mode"])
def test_a_training_forward_without_gradients_leaves_the_weights_alone(
    kind: dict, way: str
) -> None:
    """θ after a step; θ̂ only where a training forward may wait for its backward."""
    model, optimizer, prediction = attached(**kind)
    theta = weights(model)
    with getattr(torch, way)():
        model(data(model))
    assert not prediction.is_predicted
    loss = model(data(model)).square().mean()
    with getattr(torch, way)():
        model(data(model))
    loss.backward()
    optimizer.step()
    after = weights(model)
    with getattr(torch, way)():
        model(data(model))
    assert same(model.seen[0], theta)
    assert same(model.seen[2], model.seen[1])
    assert not same(model.seen[1], theta)
    assert same(model.seen[3], after)


def after_a_call_within(model: Recorder) -> list[torch.Tensor]:
    """The weights that a forward goes on with after it has called the model itself."""
    seen: list[torch.Tensor] = []

    def call(*_: object) -> None:
        handle.remove()
        model(data(model))
        seen.extend(weights(model))

    handle = model.first.register_forward_pre_hook(call)
    model(data(model))
    return seen


@KINDS
@pytest.mark.parametrize("way", ["no_grad", "inference_mode"])
def test_an_evaluation_leaves_a_waiting_graph_valid(kind: dict, way: str) -> None:
    """Its θ̂ is back to the bit, also after an evaluation that failed or called the model twice."""
    model, optimizer, prediction = attached(**kind)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    weightcast.attach(twin, twin_optimizer, 2)
    optimizer.zero_grad()
    theta = weights(model)
    for seed in range(3):
        loss = model(data(model, seed)).square().mean()
        hat, versions = weights(model), [p._version for p in model.parameters()]
        model.eval()
        with getattr(torch, way)():
            model(data(model))
            assert same(model.seen[-1], theta)
            with pytest.raises(RuntimeError, match="shapes"):
                model(torch.ones(2, 2, dtype=torch.float64))
            assert same(after_a_call_within(model), theta)
        model.train()
        assert same(weights(model), hat)
        assert [p._version for p in model.parameters()] == versions
        loss.backward()
    optimizer.step()
    for seed in range(3):
        backward(twin, seed)
    twin_optimizer.step()
    assert same(weights(model), weights(twin))
    assert not prediction.is_predicted


@KINDS
@pytest.mark.parametrize("change", ["weights", "learning rate", "gradients"])
def test_a_graph_that_no_longer_fits_is_refused(kind: dict, change: str) -> None:
    """R9: what is written during an evaluation stays, and PyTorch refuses the backward."""
    model, optimizer, _ = attached(**kind)

    def write(*_: object) -> None:
        model.second.weight.zero_()

    loss = model(data(model)).square().mean()
    with torch.set_grad_enabled(change == "gradients"):
        if change == "weights":
            model.first.register_forward_pre_hook(write)
        elif change == "learning rate":
            optimizer.param_groups[0]["lr"] *= 0.5
            model(data(model))  # in training mode it changes nothing
            assert same(model.seen[-1], model.seen[-2])
        model.eval()(data(model))
    if change == "weights":
        assert not model.second.weight.any()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@KINDS
def test_after_step_the_weights_are_true(kind: dict) -> None:
    """Invariant 3, R6: what step() leaves is θ, and stays until the next training forward."""
    model, optimizer, prediction = attached(**kind)
    plain, plain_optimizer = copy.deepcopy((model, optimizer))
    gradients = [torch.ones_like(p) for p in model.parameters()]
    for m, o in ((model, optimizer), (plain, plain_optimizer)):
        if m is model:
            m(data(m))
        for p, g in zip(m.parameters(), gradients, strict=True):
            p.grad = g.clone()
        o.step()
    assert same(weights(model), weights(plain))
    assert not prediction.is_predicted


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@KINDS
@pytest.mark.filterwarnings("ignore:.*too coarse:weightcast.PredictionWarning")
def test_restoring_is_bit_exact(kind: dict, dtype: torch.dtype) -> None:
    """R1: a saved copy, not an inverse move."""
    kind = half_safe(kind, dtype)
    model, _optimizer, prediction = attached(**kind, dtype=dtype, steps=3)
    theta = weights(model)
    for _ in range(5):
        prediction.predict()
        assert not same(weights(model), theta)
        prediction.restore()
        assert same(weights(model), theta)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@KINDS
def test_zero_steps_is_the_bare_optimizer_bit_for_bit(kind: dict, dtype: torch.dtype) -> None:
    """Invariant 1, R10."""
    options = {k: v for k, v in half_safe(kind, dtype).items() if k != "optimizer_class"}
    model = Recorder(dtype)
    plain = copy.deepcopy(model)
    optimizer = kind["optimizer_class"](model.parameters(), lr=0.01, **options)
    plain_optimizer = kind["optimizer_class"](plain.parameters(), lr=0.01, **options)
    weightcast.attach(model, optimizer, steps=0)
    train(model, optimizer, 20)
    train(plain, plain_optimizer, 20)
    assert same(weights(model), weights(plain))
    assert str(optimizer.state_dict()) == str(plain_optimizer.state_dict())


@KINDS
def test_the_first_iteration_predicts_nothing(kind: dict) -> None:
    """R3: no state, no displacement, and no state created either."""
    model = Recorder()
    options = {k: v for k, v in kind.items() if k != "optimizer_class"}
    optimizer = kind["optimizer_class"](model.parameters(), lr=0.05, **options)
    theta, state = weights(model), str(optimizer.state_dict())
    weightcast.attach(model, optimizer, steps=3)
    model(data(model))
    assert same(model.seen[0], theta)
    assert str(optimizer.state_dict()) == state


@KINDS
@pytest.mark.parametrize("set_to_none", [True, False])
def test_works_after_zero_grad(kind: dict, set_to_none: bool) -> None:
    """R2: the forecast comes from the state, whatever p.grad is."""
    model, optimizer, _ = attached(**kind)
    theta = weights(model)
    optimizer.zero_grad(set_to_none=set_to_none)
    model(data(model))
    assert not same(model.seen[-1], theta)


@KINDS
def test_gradients_are_left_alone(kind: dict) -> None:
    """Invariant 4, R29."""
    model, optimizer, prediction = attached(**kind)
    optimizer.zero_grad()
    backward(model)
    kept = [(p.grad, p.grad.clone()) for p in model.parameters()]
    prediction.restore()
    prediction.predict()
    optimizer.step()
    for p, (grad, value) in zip(model.parameters(), kept, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, value)


@KINDS
def test_predict_and_restore_are_idempotent(kind: dict) -> None:
    """R5."""
    model, _, prediction = attached(**kind)
    theta = weights(model)
    prediction.predict()
    hat = weights(model)
    prediction.predict()
    assert same(weights(model), hat)
    prediction.restore()
    prediction.restore()
    assert same(weights(model), theta)


@KINDS
def test_context_manager_nests_and_survives_exceptions(kind: dict) -> None:
    """R5."""
    model, _, prediction = attached(**kind)
    theta = weights(model)
    with pytest.raises(ZeroDivisionError), prediction.predicted() as handle:
        assert handle is prediction
        hat = weights(model)
        with prediction.predicted():
            assert same(weights(model), hat)
        assert same(weights(model), hat)
        raise ZeroDivisionError
    assert not same(hat, theta)
    assert same(weights(model), theta)


def test_an_exception_in_forward_or_backward_loses_nothing() -> None:
    model, optimizer, _ = attached()
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    weightcast.attach(twin, twin_optimizer, 2)
    handle = model.second.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(data(model))
    handle.remove()
    train(model, optimizer)
    train(twin, twin_optimizer)
    assert same(weights(model), weights(twin))


@KINDS
@pytest.mark.cell("PyTorch", "step(closure)")
def test_closure_equals_the_plain_loop(kind: dict) -> None:
    """R21, also with the closure as a keyword and with a forward outside of it."""
    model, optimizer, prediction = attached(**kind, iterations=0)
    plain, plain_optimizer = copy.deepcopy((model, optimizer))
    weightcast.attach(plain, plain_optimizer, prediction.steps)
    train(plain, plain_optimizer, 4)

    for seed in range(4):

        def closure(seed: int = seed) -> torch.Tensor:
            optimizer.zero_grad()
            return backward(model, seed)

        model(data(model))
        loss = optimizer.step(closure) if seed % 2 else optimizer.step(closure=closure)
        assert loss.requires_grad
        assert not prediction.is_predicted
    torch.testing.assert_close(weights(model), weights(plain), rtol=0, atol=1e-15)


@KINDS
def test_a_closure_that_raises_leaves_the_true_weights(kind: dict) -> None:
    model, optimizer, _ = attached(**kind)
    theta = weights(model)

    def closure() -> torch.Tensor:
        model(data(model))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)
    assert same(weights(model), theta)
    train(model, optimizer)
    theta = weights(model)
    model(data(model))
    assert not same(model.seen[-1], theta)


@KINDS
def test_a_closure_that_detaches_steps_plainly(kind: dict) -> None:
    """Trainers run the user's training step, which may turn prediction off, within a closure."""
    model, optimizer, prediction = attached(**kind)
    plain, bare = copy.deepcopy((model, optimizer))

    def closure() -> torch.Tensor:
        prediction.detach()
        optimizer.zero_grad()
        return backward(model)

    optimizer.step(closure)
    train(plain, bare, 1)
    assert same(weights(model), weights(plain))
    assert not any("prediction_displacement" in state for state in optimizer.state.values())


def test_a_closure_called_twice_in_one_step() -> None:
    """As sharpness-aware optimizers do: each call runs at a forecast, Δ is the whole step."""

    class Twice(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

        @torch.no_grad()
        def step(self, closure):
            for _ in range(2):
                with torch.enable_grad():
                    closure()
                for p in self.param_groups[0]["params"]:
                    p.sub_(p.grad, alpha=0.1)

    model = Recorder()
    optimizer = Twice(model.parameters())
    prediction = weightcast.attach(model, optimizer, steps=1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        return backward(model)

    for _ in range(2):
        before = weights(model)
        optimizer.step(closure)
    deltas = dict(prediction.displacements())
    for p, start in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(deltas[p], start - p.detach(), rtol=0, atol=1e-15)


def test_frozen_late_and_sometimes_unused_parameters() -> None:
    """R3, R19: exactly the set that was moved comes back."""
    for optimizer_class in (torch.optim.AdamW, torch.optim.NAdam):
        model = Recorder()
        model.unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        frozen = model.first.bias.requires_grad_(False)
        optimizer = optimizer_class(
            [model.first.weight, frozen, model.second.weight, model.unused], lr=0.05
        )
        prediction = weightcast.attach(model, optimizer, 2)
        train(model, optimizer, 3)
        optimizer.add_param_group({"params": [model.second.bias]})
        train(model, optimizer, 2)
        theta = weights(model)
        model(data(model))
        moved = [not torch.equal(a, b) for a, b in zip(weights(model), theta, strict=True)]
        names = [name for name, _ in model.named_parameters()]
        assert {n for n, m in zip(names, moved, strict=True) if m} == {
            "first.weight",
            "second.weight",
            "second.bias",
        }
        prediction.restore()
        assert same(weights(model), theta)
        # used at last: the optimizer initialises its state as if nothing had happened
        model.unused.sum().backward()
        optimizer.step()
        assert not (model.unused == 1).any()


@KINDS
def test_a_scheduler_between_step_and_forward_counts(kind: dict) -> None:
    """R13, R15: the forecast uses the learning rate in force when the forward starts."""
    model, optimizer, prediction = attached(**kind, steps=1)
    theta, once = weights(model), forecast(prediction, model, 1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
    model(data(model))
    for seen, hat, true in zip(model.seen[-1], once, theta, strict=True):
        torch.testing.assert_close(seen, true + 0.25 * (hat - true), rtol=0, atol=1e-14)


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_of_others_before_the_step_work_on_the_true_weights(when: str) -> None:
    """Whether they were there before `attach` or not; and what they write stays."""
    model, optimizer, prediction = attached()
    prediction.detach()
    before: list[list[torch.Tensor]] = []

    def halve(*_: object) -> None:
        before.append(weights(model))
        for p in model.parameters():
            p.detach().mul_(0.5)

    if when == "before":
        optimizer.register_step_pre_hook(halve)
    prediction = weightcast.attach(model, optimizer, 2)
    if when == "after":
        optimizer.register_step_pre_hook(halve)
    theta = weights(model)
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 1)
    assert same(before[0], theta)
    assert same(weights(model), [0.5 * p for p in theta])


class NoRate(torch.optim.Optimizer):
    """As Adafactor with relative steps: the group's rate is None."""

    def __init__(self, params: object) -> None:
        super().__init__(params, {"lr": None})

    @torch.no_grad()
    def step(self) -> None:
        for p in every_parameter(self):
            p.sub_(0.05 * p.grad)


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (NoRate, {}),
        (torch.optim.SGD, {"lr": torch.tensor([0.05], dtype=torch.float64)}),
        (torch.optim.AdamW, {"lr": torch.tensor([0.05], dtype=torch.float64)}),
    ],
)
def test_a_rate_that_is_none_or_a_tensor_of_one_dimension(
    optimizer_class: type, options: dict
) -> None:
    model = Recorder()
    try:
        train(model, optimizer_class(model.parameters(), **options))
    except TypeError:
        pytest.skip("torch's own optimizer refuses the rate in this version")
    usual = torch.optim.AdamW if optimizer_class is torch.optim.AdamW else torch.optim.SGD
    runs = []
    for cls, setting in ((optimizer_class, options), (usual, {"lr": 0.05})):
        torch.manual_seed(0)
        model = Recorder()
        optimizer = cls(model.parameters(), **setting)
        weightcast.attach(model, optimizer, 2, weight_decay=True)
        train(model, optimizer, 4)
        runs.append(weights(model))
    for ours, expected in zip(*runs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tensor", [False, True])
def test_a_change_while_predicted_counts_from_the_next_forward(tensor: bool) -> None:
    """A scheduler moves on although the gradient scaler skipped the step."""
    lr = torch.tensor(0.05) if tensor else 0.05
    model, optimizer, prediction = attached(lr=lr)
    theta, deltas = weights(model), forecast(prediction, model, 1)
    model(data(model))
    optimizer.param_groups[0]["lr"] *= 0.5  # in place, where it is a tensor
    model(data(model))
    prediction.steps = 3
    model(data(model))
    for reach, seen in zip((2, 1, 1.5), model.seen, strict=True):
        for w, true, one in zip(seen, theta, deltas, strict=True):
            torch.testing.assert_close(w, true + reach * (one - true), rtol=0, atol=1e-8)


def test_moves_are_in_place_and_keep_the_version_counter_honest() -> None:
    """R9: a restore between forward and backward is an error, never a wrong gradient."""
    model, _, prediction = attached()
    pointers = [p.data_ptr() for p in model.parameters()]
    loss = model(data(model)).square().mean()
    versions = [p._version for p in model.parameters()]
    prediction.restore()
    assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert [p.data_ptr() for p in model.parameters()] == pointers


def test_zero_grad_is_not_hooked() -> None:
    """R4: zero_grad between forward and backward, as Lightning does, moves nothing."""
    model, optimizer, _ = attached()
    loss = model(data(model)).square().mean()
    hat = weights(model)
    optimizer.zero_grad()
    model.zero_grad()
    assert same(weights(model), hat)
    loss.backward()


def test_two_models_with_two_optimizers() -> None:
    """As in a GAN: each forecast belongs to its own pair."""
    (first, _, _), (second, _, two) = attached(), attached(torch.optim.NAdam)
    theta = weights(second)
    first(data(first))
    assert same(weights(second), theta)
    second(data(second))
    two.restore()
    first.eval()(data(first))
    assert same(weights(second), theta)


def test_two_optimizers_on_one_model() -> None:
    model = Recorder()
    head = torch.optim.SGD(model.second.parameters(), lr=0.1)
    body = torch.optim.AdamW(model.first.parameters(), lr=0.1)
    one, two = weightcast.attach(model, head, 1), weightcast.attach(model, body, 2)
    for seed in range(3):
        backward(model, seed)
        head.step()
        body.step()
        model.zero_grad()
    theta = weights(model)
    model(data(model))
    assert all(not torch.equal(a, b) for a, b in zip(model.seen[-1], theta, strict=True))
    twin = copy.deepcopy(model)
    assert same(weights(twin), theta)
    one.detach()
    model(data(model))
    assert same(weights(model)[2:], theta[2:])
    assert same(weights(copy.deepcopy(model)), theta)
    two.detach()
    assert vars(model).keys() == vars(Recorder()).keys()
    assert same(weights(model), theta)


def test_detach_leaves_no_trace() -> None:
    for options in ({}, {"optimizer_class": torch.optim.Adagrad}):
        model, optimizer, prediction = attached(**options)
        plain = Recorder()
        bare = type(optimizer)(plain.parameters())
        train(plain, bare, 1)
        model(data(model))
        theta = forecast(prediction, model, 0)
        prediction.restore()
        theta = weights(model)
        model(data(model))
        prediction.detach()
        prediction.detach()
        assert same(weights(model), theta)
        model(data(model))
        assert same(model.seen[-1], theta)
        assert vars(model).keys() == vars(plain).keys()
        assert vars(optimizer).keys() <= vars(bare).keys() | {"_step_count"}
        for module in model.modules():
            assert not any(t for n, t in vars(module).items() if n.endswith("_hooks"))
        assert list(optimizer.state[model.first.weight]) == list(bare.state[plain.first.weight])
        assert repr(prediction) == "WeightPrediction(detached, steps=2, at the true weights)"
        assert list(prediction.displacements()) == []
        with pytest.raises(weightcast.WeightcastError, match="attach again"):
            prediction.predict()


def test_displacements_are_copies_and_available_while_predicted() -> None:
    for options in (
        {"optimizer_class": torch.optim.SGD, "momentum": 0.9},
        {"optimizer_class": torch.optim.SGD},
    ):
        model, _, prediction = attached(**options)
        before = {p: d.clone() for p, d in prediction.displacements()}
        with prediction.predicted():
            during = dict(prediction.displacements())
            for p, d in during.items():
                torch.testing.assert_close(d, before[p], rtol=1e-9, atol=1e-14)
                d.zero_()
        for p, d in prediction.displacements():
            torch.testing.assert_close(d, before[p], rtol=1e-9, atol=1e-14)
        assert len(before) == len(list(model.parameters()))


def test_observed_survives_a_zero_learning_rate() -> None:
    """A warm-up from 0 or a schedule that touches 0 must not turn into NaN."""
    for lr in (0.0, torch.tensor(0.0)):
        model, optimizer, prediction = attached(torch.optim.SGD, lr=0.1)
        kept = {p: d.clone() for p, d in prediction.displacements()}
        optimizer.param_groups[0]["lr"] = lr
        model(data(model))
        prediction.restore()
        train(model, optimizer, 2)
        optimizer.param_groups[0]["lr"] = 0.1
        train(model, optimizer, 2)
        assert all(p.isfinite().all() for p in model.parameters())
        assert all(d.abs().sum() > 0 for d in kept.values())


def test_moving_the_model_to_another_dtype_while_predicted() -> None:
    for options in ({}, {"optimizer_class": torch.optim.SGD}):
        model, _, prediction = attached(**options)
        theta = weights(model)
        model(data(model))
        model.float()
        prediction.restore()
        assert same(weights(model), [w.float() for w in theta])
        prediction.predict()  # with buffers of the former dtype at hand
        prediction.restore()
        assert same(weights(model), [w.float() for w in theta])


def test_a_lost_optimizer_ends_the_prediction() -> None:
    model, optimizer, prediction = attached()
    theta = weights(model)
    model(data(model))
    del optimizer
    model(data(model))
    assert same(weights(model), theta)
    assert not any(model._forward_pre_hooks)
    assert not prediction.is_predicted


def test_loading_weights_while_predicted_keeps_the_loaded_ones() -> None:
    """Nothing restores over a checkpoint, neither of the whole model nor of a part."""
    model, optimizer, prediction = attached()
    fresh = Recorder()
    model(data(model))
    model.load_state_dict(fresh.state_dict())
    prediction.restore()
    assert same(weights(model), weights(fresh))
    train(model, optimizer, 1)
    model(data(model))
    model.first.load_state_dict(fresh.first.state_dict())
    prediction.restore()
    assert same(weights(model.first), weights(fresh.first))


@settings(deadline=None)
@given(
    steps=st.floats(-100, 100),
    kind=st.sampled_from(ANALYTIC_AND_OBSERVED),
    scale=st.floats(1e-6, 1e3),
)
def test_there_and_back_for_any_steps(steps: float, kind: dict, scale: float) -> None:
    """R1, R31: bit-exact for every allowed s and any size of the displacement beside θ."""
    model, _, prediction = attached(**kind, dtype=torch.float32, lr=scale)
    theta = weights(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prediction.steps = steps
        with prediction.predicted():
            pass
    assert same(weights(model), theta)


class Trained(torch.nn.Module):
    """As a LightningModule: never called itself, only its `training_step`."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList([Recorder()])
        self.teacher = Recorder().requires_grad_(False).eval()

    def training_step(self, seed: int) -> torch.Tensor:
        (network,) = self.networks
        output = network(data(network, seed))
        with torch.no_grad():
            target = self.teacher(data(network, seed))
        return (output - target).square().mean()


def test_a_module_with_a_training_step_is_predicted_through_its_parts() -> None:
    """R22: accumulation and manual optimization too, with a teacher beside the training forward."""
    model = Trained()
    optimizer = torch.optim.AdamW(model.networks.parameters(), lr=0.05)
    prediction = weightcast.attach(model, optimizer, 2)
    (network,) = model.networks
    for seed in range(4):
        hat = forecast(prediction, network, 2) if seed else None
        for micro_batch in (seed, seed + 1):
            model.training_step(micro_batch).backward()
            if hat:
                for seen, value in zip(network.seen[-1], hat, strict=True):
                    torch.testing.assert_close(seen, value, rtol=0, atol=1e-14)
        optimizer.step(lambda: None)  # as Lightning's manual optimization does
        optimizer.zero_grad()
    theta = weights(network)
    model.training_step(0)
    model.eval()
    model.training_step(0)
    assert same(network.seen[-1], theta)
    prediction.detach()
    assert not network._forward_pre_hooks


def test_passes_over_many_tensors_are_split_to_bound_their_memory(monkeypatch) -> None:
    """R26: the temporaries of a pass stay small beside the model; the numbers stay the same."""
    results = []
    for elements in (2**16, 5):
        torch.manual_seed(0)
        monkeypatch.setitem(plans._LARGEST, Way.GATHERED, elements)
        model, _optimizer, prediction = attached()
        batches = prediction._forecast.batches()
        results.append((weights(model), [len(batch.params) for batch in batches]))
    (whole, together), (split, apart) = results
    assert same(whole, split)
    assert (together, apart) == ([4], [1, 1, 2])


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_an_empty_or_frozen_group_is_no_obstacle(optimizer_class: type) -> None:
    model = Recorder()
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    groups = [{"params": []}, {"params": [frozen]}, {"params": list(model.parameters())}]
    optimizer = optimizer_class(groups, lr=0.05)
    prediction = weightcast.attach(model, optimizer, 2)
    train(model, optimizer)
    theta = weights(model)
    expected = forecast(prediction, model, 2)
    prediction.predict()
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-12, atol=1e-12)
    prediction.restore()
    assert same(weights(model), theta)


@KINDS
def test_an_evaluation_that_was_interrupted_is_over(kind: dict) -> None:
    """torch runs no hooks after a KeyboardInterrupt: what was to follow it never comes."""
    model, _, prediction = attached(**kind)
    model(data(model))
    handle = model.register_forward_pre_hook(interrupt)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        model.eval()(data(model))
    handle.remove()
    prediction.restore()
    with torch.no_grad():
        model.train()(data(model))
    assert not prediction.is_predicted


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:weight prediction has done nothing so far")
def test_a_parameter_that_is_replaced_brings_no_new_gradient() -> None:
    """What is left of the others' gradients is theirs of before: nobody trains by other means."""
    model = Recorder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    backward(model)
    weightcast.attach(model, optimizer, steps=1)
    optimizer.step()  # by the gradient of a forward from before
    old = model.first.weight
    new = torch.nn.Parameter(old.detach().clone())
    params = optimizer.param_groups[0]["params"]
    params[next(n for n, p in enumerate(params) if p is old)] = new
    optimizer.state[new] = optimizer.state.pop(old)
    model.first.weight = new
    optimizer.step()
    theta = weights(model)
    model(data(model))
    assert not same(model.seen[-1], theta)
