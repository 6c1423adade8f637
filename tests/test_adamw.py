"""weightcast.AdamW is torch.optim.AdamW under `attach`, in every mode, dtype and loop."""

import contextlib
import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

import weightcast
from tests.discovery import DEVICE, case_id, options, torch_accepts
from tests.helpers import Recorder, backward, data, same, train, weights
from tests.oracles.algorithm1 import Algorithm1, Group
from tests.test_algorithm1 import (
    LOOPS,
    NAMES,
    Network,
    assert_equal,
    groups_of,
    initial_weights,
    plain_loop,
    run,
)

MODES: dict[str, dict[str, Any]] = {
    "lazy": {},
    "in step": {"in_step": True},
}
modes = pytest.mark.parametrize("mode", MODES)
DTYPES = {torch.float64: 1e-12, torch.float32: 2e-5}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

OPTIONS = [
    setting
    for setting in options(torch.optim.AdamW)
    if "differentiable" not in setting and torch_accepts(torch.optim.AdamW, setting)
]


def pair(
    mode: str, dtype: torch.dtype = torch.float64, steps: float = 2, **setting: Any
) -> tuple[Recorder, weightcast.AdamW, weightcast.WeightPrediction]:
    torch.manual_seed(0)
    model = Recorder(dtype).to(DEVICE)
    setting = {"lr": 0.05, **copy.deepcopy(setting)}
    optimizer = weightcast.AdamW(model.parameters(), steps=steps, **MODES[mode], **setting)
    return model, optimizer, weightcast.attach(model, optimizer)


def torchs(
    dtype: torch.dtype = torch.float64, steps: float = 2, **setting: Any
) -> tuple[Recorder, torch.optim.AdamW, weightcast.WeightPrediction]:
    torch.manual_seed(0)
    model = Recorder(dtype).to(DEVICE)
    setting = {"lr": 0.05, **copy.deepcopy(setting)}
    optimizer = torch.optim.AdamW(model.parameters(), **setting)
    return model, optimizer, weightcast.attach(model, optimizer, steps)


def assert_close(
    ours: list[Tensor],
    theirs: list[Tensor],
    dtype: torch.dtype = torch.float64,
    *,
    capturable: bool = False,
) -> None:
    # capturable, torch computes 1 - β^t in float32
    tolerance = max(DTYPES[dtype], 2e-5 * capturable)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)


# --- the same numbers ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:lr as a Tensor")
@modes
@dtypes
@pytest.mark.parametrize("setting", OPTIONS, ids=case_id)
def test_training_equals_torchs_adamw_under_attach(
    mode: str, dtype: torch.dtype, setting: dict
) -> None:
    """R10, R13, R14: every option, the learning rate another at every step, every forward."""
    runs = []
    for model, optimizer, _ in (pair(mode, dtype, **setting), torchs(dtype, **setting)):
        scheduler = schedule(optimizer)
        for seed in range(10):
            train(model, optimizer, 1)
            backward(model, seed)  # at θ̂ with the coming learning rate
            scheduler.step()
        runs.append((model, optimizer))
    (ours, _), (theirs, _) = runs
    seen = [*ours.seen, list(ours.state_dict().values())]
    for a, b in zip(seen, [*theirs.seen, list(theirs.state_dict().values())], strict=True):
        assert_close(a, b, dtype, capturable="capturable" in setting)


@modes
@LOOPS
@pytest.mark.parametrize("steps", [0, 0.5, 3])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_adamw_equals_the_paper(
    mode: str, loop: Any, steps: float, amsgrad: bool, accumulate: int
) -> None:
    """R4, R11c, R13, R14, R21: Algorithm 1 in NumPy; the rate changes at each of 200 steps."""
    theta = initial_weights()
    network = Network(theta)
    groups = [
        Group(["w1", "b1"], lr=0.02, weight_decay=0.1, steps=steps),
        Group(["w2", "b2"], lr=0.005, betas=(0.8, 0.95), eps=1e-4, steps=steps / 2),
    ]
    reference = Algorithm1(theta, groups, amsgrad=amsgrad)
    tensors = groups_of(reference, network)
    tensors[1]["prediction_steps"] = steps / 2
    optimizer = weightcast.AdamW(tensors, amsgrad=amsgrad, steps=steps, **MODES[mode])
    weightcast.attach(network, optimizer)
    run(reference, optimizer, loop(network, optimizer), accumulate)
    network.state_dict()  # back to θ
    assert_equal(network, reference)


@modes
def test_damped_steps_equal_the_paper(mode: str) -> None:
    """R31."""
    theta = initial_weights()
    network = Network(theta)
    reference = Algorithm1(theta, [Group(NAMES, steps=3)], damped=True)
    optimizer = weightcast.AdamW(groups_of(reference, network), steps=3, damped=True, **MODES[mode])
    prediction = weightcast.attach(network, optimizer)
    run(reference, optimizer, plain_loop(network, optimizer), iterations=30)
    prediction.steps = float("inf")  # Σ β₁ᵏ is finite
    prediction.restore()
    assert_equal(network, reference)


@modes
@dtypes
def test_betas_may_be_scheduled(mode: str, dtype: torch.dtype) -> None:
    """As OneCycleLR and CyclicLR do: what other betas moved ahead comes back along the same way."""
    runs = []
    for model, optimizer, _ in (pair(mode, dtype), torchs(dtype)):
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=20)
        for _ in range(10):
            train(model, optimizer, 1)
            scheduler.step()
        backward(model)
        optimizer.param_groups[0]["betas"] = (0.5, 0.99)  # while predicted
        optimizer.step()
        optimizer.state_dict()
        runs.append(model)
    ours, theirs = runs
    for a, b in zip(ours.seen, theirs.seen, strict=True):
        assert_close(a, b, dtype)
    assert_close(weights(ours), weights(theirs), dtype)


@modes
@pytest.mark.parametrize("change", [{"eps": 1e-2}, {"amsgrad": False}], ids=str)
def test_options_may_change_while_predicted(mode: str, change: dict) -> None:
    """What moved ahead by another ε, or by the largest square, comes back along the same way."""
    runs = []
    for model, optimizer, _ in (pair(mode, amsgrad=True), torchs(amsgrad=True)):
        for scale in (10, 10, 0.1, 0.1):  # so that the largest square is not the present one
            optimizer.zero_grad()
            (model(data(model)).square().mean() * scale).backward()
            if scale < 1:
                optimizer.param_groups[0].update(change)
            optimizer.step()
        optimizer.state_dict()
        runs.append(weights(model))
    assert_close(*runs)


@pytest.mark.parametrize("way", ["elsewhere", "channels last", "and back"])
@pytest.mark.parametrize("mode", [*MODES, "torch's"])
def test_weights_may_be_moved_while_predicted(mode: str, way: str) -> None:
    """`model.to(memory_format=...)`, `share_memory()`, `p.data = ...` between forward and step."""
    runs = []
    for is_moved in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 2)
        if mode == "torch's":
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        else:
            optimizer = weightcast.AdamW(model.parameters(), lr=0.05, **MODES[mode])
        weightcast.attach(model, optimizer)
        for number in range(6):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 5, 5)).square().mean().backward()
            if number == 5 and is_moved and way == "and back":
                model.to(memory_format=torch.contiguous_format)
            if number == 3 and is_moved:
                if way == "elsewhere":
                    model.weight.data = model.weight.data.clone()
                else:
                    model.to(memory_format=torch.channels_last)
            optimizer.step()
        model.state_dict()
        runs.append(weights(model))
    assert_close(*runs, torch.float32)


@modes
def test_amsgrad_may_be_turned_on(mode: str) -> None:
    """The largest square so far is then the present one."""
    model, optimizer, _ = pair(mode)
    train(model, optimizer)
    optimizer.eval()
    theta = weights(model)
    backward(model)
    usual = weights(model)
    optimizer.eval()
    optimizer.param_groups[0]["amsgrad"] = True
    backward(model)
    assert_close(weights(model), usual)
    optimizer.eval()
    assert_close(weights(model), theta)


def test_a_known_coming_rate_needs_no_correction(monkeypatch: pytest.MonkeyPatch) -> None:
    """R13: in step with `next_lr` is Algorithm 1 at once; else the next forward corrects it."""
    cpu = pytest.importorskip("weightcast.kernels.cpu", exc_type=ImportError)
    seen = []
    for tells in (True, False):
        model, optimizer, _ = pair("in step", torch.float32)
        rates = [0.05 * 0.9**k for k in range(10)]
        moves = 0
        launch = cpu.forecast

        def counted(*args: Any, launch: Any = launch) -> None:
            nonlocal moves
            moves += 1
            launch(*args)

        monkeypatch.setattr(cpu, "forecast", counted)
        for k in range(9):
            optimizer.param_groups[0]["lr"] = rates[k]
            optimizer.zero_grad()
            backward(model, k)
            optimizer.step(next_lr=rates[k + 1] if tells else None)
        monkeypatch.undo()
        assert moves == (0 if tells else 8)
        seen.append(model.seen)
    for a, b in zip(*seen, strict=True):
        assert_close(a, b, torch.float32)
    with pytest.raises(weightcast.InvalidArgumentError, match=r"each of the 1 parameter groups, "):
        optimizer.step(next_lr=[0.1, 0.2])


@pytest.mark.filterwarnings("ignore:lr as a Tensor")
@modes
@dtypes
@pytest.mark.parametrize("setting", OPTIONS, ids=case_id)
def test_no_steps_are_torchs_adamw_bit_for_bit(
    mode: str, dtype: torch.dtype, setting: dict
) -> None:
    """R10, invariant 1: weights and state, whatever variant of torch's is asked for."""
    ours, optimizer, _ = pair(mode, dtype, steps=0, **setting)
    theirs, reference, prediction = torchs(dtype, **setting)
    prediction.detach()
    for model, o in ((ours, optimizer), (theirs, reference)):
        scheduler = schedule(o)
        for _ in range(5):
            train(model, o, 2)
            scheduler.step()
    assert same(weights(ours), weights(theirs))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert optimizer.state[p].keys() == reference.state[q].keys()
        for key, value in reference.state[q].items():
            assert torch.equal(optimizer.state[p][key], value), key


@modes
def test_the_plain_step_counts_in_the_state_itself(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 1 on a GPU: torch's counts are on the host, and kernels would read copies."""
    monkeypatch.setattr(weightcast.kernels.operands, "_count", lambda step, *_: step.clone())
    ours, optimizer, _ = pair(mode, steps=0)
    theirs, reference, prediction = torchs()
    prediction.detach()
    train(ours, optimizer, 3)
    train(theirs, reference, 3)
    assert same(weights(ours), weights(theirs))
    assert all(optimizer.state[p]["step"] == 3 for p in ours.parameters())


# --- checkpoints ---------------------------------------------------------------------------------


def through_disk(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.filterwarnings("ignore:lr as a Tensor")
@modes
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("setting", OPTIONS, ids=case_id)
def test_checkpoints_from_torch_and_back(mode: str, steps: float, setting: dict) -> None:
    """R16, R17, R19: torch → ours → torch in mid-run; bit for bit where no forecast lies between.

    Saved while predicted, and loaded into a pair that is predicted too.
    """
    makers = {
        "torch": lambda: torchs(torch.float32, steps, **setting),
        "ours": lambda: pair(mode, torch.float32, steps, **setting),
    }
    results = []
    for chain in (["torch"] * 3, ["torch", "ours", "torch"]):
        saved = None
        for who in chain:
            model, optimizer, _ = makers[who]()
            if saved:
                train(model, optimizer, 2)
                model(data(model))
                model.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
                optimizer.param_groups[0]["prediction_steps"] = steps
            train(model, optimizer, 4)
            model(data(model))
            saved = through_disk([model.state_dict(), optimizer.state_dict()])
            assert "prediction_distance" not in saved[1]["param_groups"][0]
        results.append(saved)
    (theta, state), (ours, our_state) = results
    for name, value in theta.items():
        if steps:
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(ours[name], value)
    assert state["state"].keys() == our_state["state"].keys()
    for index, entries in state["state"].items():
        assert our_state["state"][index].keys() == entries.keys()


@modes
def test_resuming_equals_going_on(mode: str) -> None:
    """R16: from a checkpoint made while the weights were predicted, bit for bit."""
    model, optimizer, _ = pair(mode, torch.float32)
    train(model, optimizer, 4)
    backward(model)
    saved = through_disk([model.state_dict(), optimizer.state_dict()])
    resumed, other, _ = pair(mode, torch.float32)
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for m, o in ((model, optimizer), (resumed, other)):
        train(m, o, 4)
        m.state_dict()
    assert same(weights(model), weights(resumed))


@modes
@dtypes
@pytest.mark.parametrize("attached", [True, False])
def test_whatever_is_saved_or_copied_is_true(mode: str, dtype: torch.dtype, attached: bool) -> None:
    """R16, R19: while predicted; without `attach` the optimizer's own state_dict() sees to it."""
    model, optimizer, prediction = pair(mode, dtype)
    train(model, optimizer, 3)
    model.state_dict()
    theta = weights(model)
    optimizer.train()
    hat = weights(model)
    assert not same(hat, theta)
    if not attached:
        prediction.detach()
    ways = {
        "saved": lambda: through_disk({"model": model.state_dict(), "o": optimizer.state_dict()}),
        "deepcopied": lambda: copy.deepcopy((optimizer, model)),
        "pickled": lambda: pickle.loads(pickle.dumps((optimizer, model))),
    }
    for way, act in ways.items():
        optimizer.train()
        result = act()
        assert not optimizer.is_predicted
        assert_close(weights(model), theta, dtype)
        if way == "saved":
            assert_close(list(result["model"].values()), theta, dtype)
            continue
        twin_optimizer, twin = result
        assert_close(weights(twin), theta, dtype)
        assert not twin_optimizer.is_predicted
        assert twin_optimizer.in_step == optimizer.in_step
        assert twin_optimizer.damped == optimizer.damped
        weightcast.attach(twin, twin_optimizer)
        train(twin, twin_optimizer, 2)
        assert_close(weights(model), theta, dtype)
    if mode == "lazy":
        assert same(weights(model), theta)  # R1


@modes
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("option", ["capturable", "fused", None])
def test_a_checkpoint_counts_steps_where_torch_does(
    mode: str, steps: float, option: str | None
) -> None:
    """R16: else torch would wait for the device at every step of every parameter."""
    setting = {option: True} if option and torch_accepts(torch.optim.AdamW, {option: True}) else {}
    saved = []
    for model, optimizer, _ in (
        pair(mode, torch.float32, steps, **setting),
        torchs(torch.float32, steps, **setting),
    ):
        train(model, optimizer, 2)
        saved.append(optimizer.state_dict()["state"])
    for ours, theirs in zip(*(state.values() for state in saved), strict=True):
        assert ours["step"].device == theirs["step"].device
        assert torch.equal(ours["step"], theirs["step"])


@modes
def test_loading_only_the_optimizer_loses_no_weights(mode: str) -> None:
    model, optimizer, _ = pair(mode)
    train(model, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    theta = weights(model)
    model(data(model))
    optimizer.load_state_dict(state)
    assert not optimizer.is_predicted
    assert_close(weights(model), theta)


def test_loading_weights_and_state_without_attach() -> None:
    """Neither is moved for what the optimizer did before."""
    model, optimizer, prediction = pair("in step")
    prediction.detach()
    train(model, optimizer, 3)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    optimizer.eval()
    saved[0] = copy.deepcopy(model.state_dict())
    train(model, optimizer, 3)
    assert optimizer.is_predicted
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    assert not optimizer.is_predicted
    assert same(weights(model), list(saved[0].values()))


# --- training loops ------------------------------------------------------------------------------


@modes
@dtypes
def test_evaluation_averaging_and_logging_are_at_the_true_weights(
    mode: str, dtype: torch.dtype
) -> None:
    """R6: under `attach` evaluation needs no switch; lazy, nor does an average after step()."""
    model, optimizer, _ = pair(mode, dtype)
    twin, reference, _ = torchs(dtype)
    average, other = AveragedModel(model), AveragedModel(twin)
    for _ in range(5):
        for m, o, a in ((model, optimizer, average), (twin, reference, other)):
            train(m, o, 1)
            if mode == "in step" and o is optimizer:
                o.eval()
            a.update_parameters(m)
            m.eval()(data(m))
            with torch.no_grad():
                m.train()(data(m))
    for a, b in zip(model.seen, twin.seen, strict=True):
        assert_close(a, b, dtype)
    assert_close(weights(average), weights(other), dtype)


@modes
@pytest.mark.parametrize("fused", [None, True])
def test_a_skipped_step_neither_compounds_nor_loses(mode: str, fused: bool | None) -> None:
    """R7, invariant 5: overflows at the first step and in mid-run, the scheduler going on.

    With fused=True the step is called all the same and skips inside, as torch's does.
    """
    runs = []
    for model, optimizer, _ in (
        pair(mode, torch.float32, fused=fused),
        torchs(torch.float32, fused=fused),
    ):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scheduler = schedule(optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the scheduler went before the optimizer
            for seed, overflow in enumerate([1, 0, 0, 1, 1, 0, 0]):
                optimizer.zero_grad()
                loss = model(data(model, seed)).square().mean()
                scaler.scale(loss * (torch.inf if overflow else 1.0)).backward()
                scaler.step(optimizer)
                scaler.update()
                scheduler.step()
                model.state_dict()
        runs.append((model, [int(optimizer.state[p]["step"]) for p in model.parameters()]))
    assert runs[0][1] == runs[1][1] == [4] * 4
    for a, b in zip(runs[0][0].seen, runs[1][0].seen, strict=True):
        assert_close(a, b, torch.float32)


@modes
@dtypes
def test_parameters_with_and_without_gradients(mode: str, dtype: torch.dtype) -> None:
    """R2, R3: frozen, used now and then, added later, their state gone; zero_grad anywhere."""
    runs = []
    for model, optimizer, _ in (pair(mode, dtype), torchs(dtype)):
        model.first.bias.requires_grad_(False)
        late = torch.nn.Parameter(torch.ones(2, dtype=dtype))
        for k in range(12):
            optimizer.zero_grad(set_to_none=bool(k % 2))
            backward(model, k)
            if k % 3:
                model.second.bias.grad = None
            if k > 6 and k % 2:
                late.grad = torch.full_like(late, 0.1 * k)
            if k == 5:
                optimizer.add_param_group({"params": [late], "lr": 0.1})
            if k == 9:
                del optimizer.state[model.second.weight]
            optimizer.step()
            optimizer.zero_grad()
        model.state_dict()
        runs.append([*weights(model), late.detach()])
    ours, theirs = runs
    if mode == "lazy":
        assert_close(ours, theirs, dtype)
    else:  # θ cannot be told from θ̂ any more where the state is taken away in between
        del ours[2], theirs[2]
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("when", ["while predicted", "in between"])
def test_a_cleared_state_leaves_the_weights_alone(when: str) -> None:
    """A copy of older weights is not taken for θ."""
    model, optimizer, _ = pair("lazy")
    train(model, optimizer, 3)
    theta = weights(model)
    if when == "while predicted":
        model(data(model))
    optimizer.state.clear()
    for lr in (0.0, 0.0):
        optimizer.param_groups[0]["lr"] = lr
        train(model, optimizer, 1)
        model.state_dict()
    assert same(weights(model), theta)


@pytest.mark.filterwarnings("ignore:weight prediction moves no parameter")
@modes
@dtypes
def test_a_state_that_is_reset_begins_anew(mode: str, dtype: torch.dtype) -> None:
    """No plan of an earlier first step is taken for the one of a later."""
    ended = []
    for model, optimizer, _ in (pair(mode, dtype), torchs(dtype)):
        for iterations in (3, 3, 1, 3):
            train(model, optimizer, iterations)
            model.state_dict()  # at θ
            optimizer.state.clear()
        ended.append(weights(model))
    assert_close(*ended, dtype)


@modes
def test_switching_without_attach(mode: str) -> None:
    """R20: train() and eval() any number of times; the same numbers as with `attach`."""
    model, optimizer, prediction = pair(mode)
    twin, other, _ = pair(mode)
    prediction.detach()
    for k in range(5):
        for o in (optimizer, other):
            o.zero_grad()
        for _ in range(3):  # before every micro-batch
            optimizer.train()
            optimizer.train()
            backward(model, k)
            backward(twin, k)
        optimizer.step()
        other.step()
        assert optimizer.is_predicted is (mode == "in step")
        optimizer.eval()
        optimizer.eval()
        assert not optimizer.is_predicted
        twin.state_dict()
        assert_close(weights(model), weights(twin))
    for a, b in zip(model.seen, twin.seen, strict=True):
        assert_close(a, b)


def test_a_dropped_optimizer_leaves_the_true_weights() -> None:
    model, optimizer, prediction = pair("in step")
    prediction.detach()
    train(model, optimizer, 3)
    hat = weights(model)
    twin = copy.deepcopy(optimizer)
    optimizer.train()
    assert_close(weights(model), hat)
    del optimizer
    assert not twin.is_predicted
    assert not same(weights(model), hat)


@modes
def test_an_exception_in_a_closure(mode: str) -> None:
    model, optimizer, _ = pair(mode)
    train(model, optimizer, 3)
    model.state_dict()
    theta = weights(model)

    def closure() -> None:
        backward(model)
        raise ArithmeticError

    with contextlib.suppress(ArithmeticError):
        optimizer.step(closure)
    model.eval()(data(model))
    assert_close(weights(model), theta)


# --- low precision -------------------------------------------------------------------------------

LOW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@modes
@LOW
def test_low_precision_weights_are_copies_of_float32_weights(mode: str, dtype: torch.dtype) -> None:
    """R28: with the same gradients, the master is float32 AdamW; what is seen is θ̂ rounded."""
    generator = torch.Generator().manual_seed(1)
    p = torch.nn.Parameter(torch.randn(300, generator=generator).to(dtype))
    q = torch.nn.Parameter(p.detach().float())
    ours = weightcast.AdamW([p], 1e-4, steps=2, **MODES[mode])
    theirs = torch.optim.AdamW([q], 1e-4)
    for k in range(30):
        ours.param_groups[0]["lr"] = theirs.param_groups[0]["lr"] = 1e-4 * 0.9**k
        ours.train()
        if k:
            m, v = theirs.state[q]["exp_avg"], theirs.state[q]["exp_avg_sq"]
            u = m / (1 - 0.9**k) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
            hat = q.detach() - 2 * 1e-4 * 0.9**k * u
            error = (p.detach().float() - hat).abs() / hat.abs().clamp(min=0.1)
            assert error.max() < torch.finfo(dtype).eps
        p.grad = torch.randn(300, generator=generator).to(dtype)
        q.grad = p.grad.float()
        ours.step()
        theirs.step()
        torch.testing.assert_close(ours.state[p]["master"], q.detach(), rtol=1e-6, atol=1e-7)
        ours.eval()
        assert torch.equal(p, ours.state[p]["master"].to(dtype))
    assert {t.dtype for t in ours.state[p].values()} == {torch.float32}


@modes
@LOW
def test_low_precision_checkpoints(mode: str, dtype: torch.dtype) -> None:
    """R17, R18: float32 state loads as it was; torch's own checkpoint in low precision loads too;
    and where torch trained on in between, its weights win over the master that it carried along.
    """
    model, optimizer, _ = pair(mode, dtype)
    train(model, optimizer, 4)
    saved = through_disk([model.state_dict(), optimizer.state_dict()])
    twin, other, _ = pair(mode, dtype)
    twin.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            assert torch.equal(other.state[q][key].to(value.device), value)  # a checkpoint's count
            assert other.state[q][key].dtype is torch.float32
    for m, o in ((model, optimizer), (twin, other)):
        train(m, o, 3)
        m.state_dict()
    assert same(weights(model), weights(twin))
    plain, theirs, prediction = torchs(dtype, steps=0)
    prediction.detach()
    plain.load_state_dict(twin.state_dict())
    theirs.load_state_dict(through_disk(other.state_dict()))
    train(plain, theirs, 3)
    twin.load_state_dict(plain.state_dict())
    other.load_state_dict(through_disk(theirs.state_dict()))
    other.param_groups[0]["lr"] = 0.0
    train(twin, other, 1)
    twin.state_dict()
    assert same(weights(twin), weights(plain))


@modes
def test_who_writes_to_low_precision_weights_is_heeded(mode: str) -> None:
    """Clamping, loading or re-initialising after the first step reaches the master."""
    model, optimizer, _ = pair(mode, torch.bfloat16)
    train(model, optimizer, 2)
    optimizer.eval()
    with torch.no_grad():
        model.first.weight.fill_(0.25)
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 1)
    model.state_dict()
    assert (model.first.weight == 0.25).all()
    assert (optimizer.state[model.first.weight]["master"] == 0.25).all()


# --- memory --------------------------------------------------------------------------------------


@modes
def test_what_is_kept_beside_the_state(mode: str) -> None:
    """R26: lazy one copy of the weights; in step none; nobody holds a gradient."""
    model, optimizer, _ = pair(mode, torch.float32)
    for _ in range(3):
        train(model, optimizer, 1)
    assert len(optimizer.forecast.memory) == (4 if mode == "lazy" else 0)
    where = {t.data_ptr() for t in optimizer.forecast.memory.values()}
    train(model, optimizer, 3)
    assert {t.data_ptr() for t in optimizer.forecast.memory.values()} == where
    seen = []
    for _ in range(100):
        train(model, optimizer, 1)
        optimizer.param_groups[0]["lr"] *= 0.9
        launches = [launch for _, plan in optimizer._updates.plans.values() for launch in plan]
        seen.append([*map(id, launches), *map(id, optimizer.forecast.known())])
    assert seen[1] == seen[-1]  # nothing is planned anew
    assert not any(launch.operands.grads for launch in launches)


def test_drift_of_what_keeps_no_copy() -> None:
    """After 2,000 steps θ is nearer to the exact float32 run than that is to float64."""
    results = {}
    for name, m, dtype in (
        ("exact", "lazy", torch.float32), ("ours", "in step", torch.float32),
        ("64", "lazy", torch.float64),
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.randn(500, generator=generator).to(dtype))
        optimizer = weightcast.AdamW([p], 1e-3, steps=3, weight_decay=0.01, **MODES[m])
        for k in range(2000):
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 - k / 4000)
            optimizer.train()
            p.grad = (0.05 * torch.randn(500, generator=generator)).to(dtype)
            optimizer.step()
        optimizer.eval()
        results[name] = p.detach().double()
    drift = (results["ours"] - results["exact"]).abs().mean()
    rounding = (results["exact"] - results["64"]).abs().mean()
    assert drift < 0.1 * rounding


# --- what is refused, and what is said -----------------------------------------------------------


def test_impossible_arguments_are_refused() -> None:
    params = [torch.nn.Parameter(torch.zeros(2))]
    for arguments, message in [
        ({"differentiable": True}, r"use torch\.optim\.AdamW to differentiate"),
        ({"steps": 101}, r"steps must be a number of optimizer steps"),
    ]:
        with pytest.raises(weightcast.InvalidArgumentError, match=message):
            weightcast.AdamW(params, **arguments)
    with pytest.raises(weightcast.InvalidTypeError, match="steps must be a number"):
        weightcast.AdamW(params, steps="3")
    with pytest.raises(ValueError, match="Invalid learning rate"):
        weightcast.AdamW(params, lr=-1.0)


def test_sparse_gradients_are_refused_before_anything_moves() -> None:
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = weightcast.AdamW(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(weightcast.InvalidTypeError, match="does not support sparse gradients"):
        optimizer.step()
    assert not optimizer.state


def test_damped_steps_may_be_infinite_under_attach() -> None:
    """They are the optimizer's: what it takes, the handle takes, and no other (R31)."""
    model = torch.nn.Linear(2, 1)
    optimizer = weightcast.AdamW(model.parameters(), damped=True)
    prediction = weightcast.attach(model, optimizer, steps=float("inf"))
    assert prediction.damped
    assert optimizer.param_groups[0]["prediction_steps"] == float("inf")
    prediction.detach()
    with pytest.raises(weightcast.InvalidArgumentError, match="between"):
        weightcast.attach(model, weightcast.AdamW(model.parameters()), steps=float("inf"))


@pytest.mark.parametrize("options", [{"rule": "observed"}, {"damped": True}])
def test_its_forecast_is_its_own(options: dict) -> None:
    model = Recorder()
    with pytest.raises(weightcast.InvalidArgumentError, match="AdamW makes its own forecast"):
        weightcast.attach(model, weightcast.AdamW(model.parameters()), **options)


def test_the_handle_shows_and_sets_the_optimizers_steps() -> None:
    model = Recorder()
    optimizer = weightcast.AdamW(model.parameters(), 0.05, steps=1)
    prediction = weightcast.attach(model, optimizer)
    assert prediction.steps == 1
    prediction.detach()
    prediction = weightcast.attach(model, optimizer, 2)
    assert optimizer.param_groups[0]["prediction_steps"] == prediction.steps == 2
    train(model, optimizer, 2)
    assert repr(prediction) == "WeightPrediction(AdamW, steps=2, at the true weights)"
    theta, deltas = weights(model), dict(prediction.displacements())
    prediction.steps = 3
    with prediction.predicted():
        assert prediction.is_predicted
        assert_close(
            weights(model),
            [t - 3 * deltas[p] for p, t in zip(model.parameters(), theta, strict=True)],
        )
    assert same(weights(model), theta)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
def test_forwards_without_gradients_leave_a_waiting_graph_valid(
    mode: str, dtype: torch.dtype
) -> None:
    """θ̂ is back to the bit after an evaluation at θ; a rollout after `step()` runs at θ."""
    model, optimizer, prediction = pair(mode, dtype, 2)
    train(model, optimizer)
    for training in (True, False):
        with torch.no_grad():
            model(data(model))
        theta = list(copy.deepcopy(model).parameters())
        assert same(model.seen[-1], theta)
        loss = model(data(model)).square().mean()
        hat, versions = weights(model), [p._version for p in model.parameters()]
        with torch.no_grad():
            model.train(training)(data(model))
        model.train()
        assert_close(model.seen[-1], hat if training else theta, dtype)
        assert same(weights(model), hat)
        assert [p._version for p in model.parameters()] == versions
        assert prediction.is_predicted
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_forecast_that_nobody_asks_for_is_reported_once() -> None:
    """Invariant 6."""
    model = Recorder()
    optimizer = weightcast.AdamW(model.parameters())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, 5)
    (message,) = [str(w.message) for w in caught]
    assert "weightcast.AdamW has not forecast so far" in message


@pytest.mark.parametrize("case", ["in step", "no steps", "attach", "train()"])
def test_what_forecasts_is_not_reported(case: str, silent: None) -> None:
    model = Recorder()
    optimizer = weightcast.AdamW(
        model.parameters(), steps=0 if case == "no steps" else 3, in_step=case == "in step"
    )
    prediction = weightcast.attach(model, optimizer) if case == "attach" else None
    for _ in range(4):
        if case == "train()":
            optimizer.train()
        train(model, optimizer, 1)
    assert prediction is None or not prediction.is_predicted


# --- random scripts ------------------------------------------------------------------------------


class TrainingScript(RuleBasedStateMachine):
    """Whatever a script does, every forward sees what it would under torch's AdamW and `attach`."""

    @initialize(
        mode=st.sampled_from(sorted(MODES)),
        dtype=st.sampled_from(sorted(DTYPES, key=str)),
        amsgrad=st.booleans(),
        steps=st.sampled_from([1, 2.5, -1]),
    )
    def start(self, mode: str, dtype: torch.dtype, amsgrad: bool, steps: float) -> None:
        self.dtype = dtype
        ours = pair(mode, dtype, steps, amsgrad=amsgrad, eps=1e-3)
        self.pairs = [ours, torchs(dtype, steps, amsgrad=amsgrad, eps=1e-3)]
        self.pending = self.stored = None

    def each(self, act: Any) -> None:
        for model, optimizer, prediction in self.pairs:
            act(model, optimizer, prediction)

    def teardown(self) -> None:
        if hasattr(self, "pairs"):
            ours, theirs = (list(model.state_dict().values()) for model, _, _ in self.pairs)
            for a, b in zip(ours, theirs, strict=True):
                tolerance = 1e-9 if self.dtype is torch.float64 else 1e-3
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
            for a, b in zip(*(model.seen for model, _, _ in self.pairs), strict=True):
                for x, y in zip(a, b, strict=True):
                    torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)

    @rule(seed=st.integers(0, 5), set_to_none=st.booleans())
    def iteration(self, seed: int, set_to_none: bool) -> None:
        def act(model: Recorder, optimizer: Any, _: Any) -> None:
            optimizer.zero_grad(set_to_none=set_to_none)
            backward(model, seed)
            optimizer.step()

        self.each(act)

    @rule(seed=st.integers(0, 5))
    def micro_batch(self, seed: int) -> None:
        self.each(lambda model, *_: backward(model, seed))

    @rule(training=st.booleans(), gradients=st.booleans())
    def evaluate(self, training: bool, gradients: bool) -> None:
        def act(model: Recorder, *_: Any) -> None:
            with torch.set_grad_enabled(gradients):
                model.train(training)(data(model))
            model.train()

        self.each(act)

    @precondition(lambda self: self.pairs[0][0].first.weight.grad is not None)
    @rule()
    def step(self) -> None:
        self.each(lambda _, optimizer, __: optimizer.step())

    @rule(seed=st.integers(0, 5), fails=st.booleans())
    def step_with_closure(self, seed: int, fails: bool) -> None:
        def act(model: Recorder, optimizer: Any, _: Any) -> None:
            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = backward(model, seed)
                if fails:
                    raise ArithmeticError
                return loss

            with contextlib.suppress(ArithmeticError):
                optimizer.step(closure)

        self.each(act)

    @rule(lr=st.sampled_from([0.01, 0.05, 0.1]))
    def schedule(self, lr: float) -> None:
        self.each(lambda _, o, __: o.param_groups[0].update(lr=lr))

    @rule(steps=st.sampled_from([0, 0.5, 1, 3]))
    def change_steps(self, steps: float) -> None:
        self.each(lambda _, __, prediction: setattr(prediction, "steps", steps))

    @rule()
    def freeze_or_thaw(self) -> None:
        self.each(lambda model, *_: model.first.bias.requires_grad_(model.first.bias.grad is None))

    @rule()
    def save(self) -> None:
        self.stored = [
            copy.deepcopy((model.state_dict(), o.state_dict(), prediction.steps))
            for model, o, prediction in self.pairs
        ]

    @precondition(lambda self: self.stored is not None)
    @rule()
    def load(self) -> None:
        for (model, optimizer, prediction), (theta, state, steps) in zip(
            self.pairs, copy.deepcopy(self.stored), strict=True
        ):
            model.load_state_dict(theta)
            optimizer.load_state_dict(state)
            prediction.steps = steps

    @rule()
    def copy_and_detach(self) -> None:
        for k, (model, optimizer, prediction) in enumerate(self.pairs):
            steps = prediction.steps
            twins = copy.deepcopy((model, optimizer))
            prediction.detach()
            self.pairs[k] = (*twins, weightcast.attach(*twins, steps))


TestTrainingScript = TrainingScript.TestCase
TestTrainingScript.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)
TestTrainingScript.pytestmark = [
    pytest.mark.filterwarnings("ignore:weight prediction has done nothing so far"),
    pytest.mark.filterwarnings("ignore:weightcast.AdamW has not forecast so far"),
]


@modes
def test_two_forwards_before_one_backward_share_a_forecast(mode: str, monkeypatch) -> None:
    """Also where the learning rate is a tensor on a device, which nobody waits for to compare."""
    distance = weightcast.adamw.forecast.AdamWForecast.distance
    monkeypatch.setattr(
        weightcast.adamw.forecast.AdamWForecast,
        "distance",
        lambda self, group, lr=None: torch.as_tensor(distance(self, group, lr)),
    )
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    optimizer = weightcast.AdamW(model.parameters(), lr=0.1, **MODES[mode])
    weightcast.attach(model, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        (model(torch.ones(2, 3)) + model(torch.zeros(2, 3))).sum().backward()
        assert optimizer.is_predicted
        optimizer.step()
