"""θ is known at every moment: what lost it, or a gradient, without a word (invariants 2, 3, 9)."""

from __future__ import annotations

import copy
import gc
import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import weightcast
from tests.helpers import (
    ANALYTIC_AND_OBSERVED,
    Recorder,
    attached,
    backward,
    data,
    forecast,
    kind_id,
    same,
    train,
    weights,
)

KINDS = pytest.mark.parametrize("kind", ANALYTIC_AND_OBSERVED, ids=kind_id)
OWN = [{}, {"in_step": True}]
owns = pytest.mark.parametrize("own", OWN, ids=["lazy", "in step"])


class Tied(nn.Module):
    """Two Parameters on one memory, wholly or in part."""

    def __init__(self, dtype: torch.dtype, way: str) -> None:
        super().__init__()
        memory = torch.linspace(-1, 1, 12, dtype=dtype)
        self.a = nn.Parameter(memory[:8].view(2, 4))
        self.b = nn.Parameter({"whole": memory[:8], "part": memory[4:]}[way].view(2, 4))
        self.c = nn.Parameter(torch.ones(3, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.a.T).square().mean() + (x @ self.b.T).sum() + self.c.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", ["whole", "part"])
@KINDS
def test_parameters_that_share_memory_come_back(kind: dict, way: str, dtype: torch.dtype) -> None:
    options = {k: v for k, v in kind.items() if k != "optimizer_class"}
    model = Tied(dtype, way)
    optimizer = kind["optimizer_class"](model.parameters(), lr=0.1, **options)
    prediction = weightcast.attach(model, optimizer, steps=2)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(1, 4, dtype=dtype)).backward()
        optimizer.step()
        theta = weights(model)
        prediction.predict()
        assert not same(weights(model), theta)
        prediction.restore()
        assert same(weights(model), theta)


@pytest.mark.parametrize("groups", [1, 2])
@owns
def test_our_adamw_updates_shared_memory_as_torchs(own: dict, groups: int) -> None:
    """One update goes on from the other; and both ways end at the same θ as torch with attach."""
    results = []
    for cls in (torch.optim.AdamW, weightcast.AdamW):
        model = Tied(torch.float64, "part")
        a, b, c = model.parameters()
        params = [a, b, c] if groups == 1 else [{"params": [a, c]}, {"params": [b]}]
        mine = own if cls is weightcast.AdamW else {}
        optimizer = cls(params, lr=0.1, **mine)
        prediction = weightcast.attach(model, optimizer, steps=2)
        seen = []
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(1, 4, dtype=torch.float64)).backward()
            seen.append(weights(model))
            optimizer.step()
        prediction.restore()
        results.append([*itertools.chain(*seen), *weights(model)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_two_attached_models_on_one_memory() -> None:
    """One forecast at a time: neither takes the other's θ̂ for θ, and no update is lost."""
    steps = []
    for is_predicted in (False, True):
        torch.manual_seed(0)
        one, two = Recorder(), Recorder()
        two.load_state_dict(one.state_dict())
        for p, q in zip(one.parameters(), two.parameters(), strict=True):
            q.data = p.data
        optimizers = [torch.optim.AdamW(m.parameters(), lr=0.05) for m in (one, two)]
        predictions = [
            weightcast.attach(m, o, steps=2 if is_predicted else 0)
            for m, o in zip((one, two), optimizers, strict=True)
        ]
        updates = []
        for k in range(4):
            for model, optimizer in zip((one, two), optimizers, strict=True):
                optimizer.zero_grad()
                backward(model, k)
                for p in model.parameters():  # the same gradient wherever it was taken
                    p.grad = torch.ones_like(p) * (k + 1)
            for optimizer in optimizers:
                optimizer.step()
                updates.append(weights(one))
        for prediction in predictions:
            theta = weights(one)
            prediction.predict()
            assert not is_predicted or not same(weights(one), theta)
            prediction.restore()
            assert same(weights(one), theta)
        steps.append(updates)
    for plain, predicted in zip(*steps, strict=True):
        assert same(plain, predicted)


@pytest.mark.filterwarnings("ignore:weightcast.AdamW has not forecast")
@pytest.mark.parametrize("way", ["negative", "zeros"])
@pytest.mark.parametrize("own", [*OWN, {"steps": 0}], ids=["lazy", "in step", "plain"])
def test_gradients_that_are_lazy_views_are_read_for_what_they_are(way: str, own: dict) -> None:
    ends = []
    for cls in (torch.optim.AdamW, weightcast.AdamW):
        w = nn.Parameter(torch.tensor(0.5))
        c = torch.tensor(1 + 2j)
        optimizer = cls([w], lr=0.05, **(own if cls is weightcast.AdamW else {}))
        for _ in range(20):
            if way == "negative":
                # autograd gives the gradient of an imaginary part as a view
                optimizer.zero_grad()
                (torch.complex(torch.ones_like(w), w).conj() * c).real.sum().backward()
            else:
                w.grad = torch._efficientzerotensor(w.shape, dtype=w.dtype)
            optimizer.step()
        if cls is weightcast.AdamW:
            optimizer.eval()
        ends.append(w.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def test_a_parameter_that_is_a_lazy_conjugate_is_refused_by_name() -> None:
    w = nn.Parameter(torch.ones(3, dtype=torch.complex64).conj())
    model = nn.ParameterList([w])
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    w.grad = torch.ones(3, dtype=torch.complex64)
    prediction = weightcast.attach(model, optimizer)
    with pytest.raises(weightcast.InvalidArgumentError, match="resolve_conj"):
        optimizer.step()
        prediction.predict()


@pytest.mark.filterwarnings("ignore:.*too coarse")
@pytest.mark.parametrize("cls", [torch.optim.AdamW, weightcast.AdamW, torch.optim.SGD])
def test_a_plan_knows_the_dtype_that_it_was_made_for(cls: type) -> None:
    """Two conversions may end at the very address where they began: two views of one memory."""
    memory = torch.full((64,), 7.0)
    p = nn.Parameter(memory[:32])
    model = nn.ParameterList([p])
    optimizer = cls([p], lr=0.1)
    prediction = weightcast.attach(model, optimizer, steps=2)
    p.grad = torch.ones(32)
    optimizer.step()
    prediction.predict()
    prediction.restore()
    address = p.data_ptr()
    p.data = memory[:16].view(torch.bfloat16)  # as many elements in half the memory
    assert (p.data_ptr(), p.numel()) == (address, 32)
    memory[16:] = 7.0
    prediction.predict()
    prediction.restore()
    assert torch.equal(memory[16:], torch.full((48,), 7.0))


# --- steps have one owner ------------------------------------------------------------------------


def checkpoint_of_ours() -> dict:
    model = Recorder(torch.float32)
    optimizer = weightcast.AdamW(model.parameters(), lr=0.05, steps=3)
    weightcast.attach(model, optimizer)
    train(model, optimizer)
    return copy.deepcopy(optimizer.state_dict())


@pytest.mark.parametrize("when", ["before", "after"])
def test_steps_that_came_with_a_checkpoint_give_way_to_those_given(when: str) -> None:
    model = Recorder(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    if when == "before":
        optimizer.load_state_dict(checkpoint_of_ours())
    prediction = weightcast.attach(model, optimizer, steps=1)
    if when == "after":
        optimizer.load_state_dict(checkpoint_of_ours())
    for steps in (1.0, 0.0, 2.0):
        prediction.steps = steps
        assert prediction.steps == steps
        expected = forecast(prediction, model, steps)
        with prediction.predicted():
            for p, e in zip(model.parameters(), expected, strict=True):
                torch.testing.assert_close(p.detach(), e, rtol=1e-6, atol=1e-7)


def test_steps_of_some_groups_are_their_own() -> None:
    model = Recorder()
    first, second = list(model.first.parameters()), list(model.second.parameters())
    groups = [{"params": first, "prediction_steps": 1}, {"params": second}]
    optimizer = torch.optim.AdamW(groups, lr=0.05)
    prediction = weightcast.attach(model, optimizer, steps=4)
    train(model, optimizer)
    prediction.steps = 2
    deltas = dict(prediction.displacements())
    expected = [p.detach() - s * deltas[p] for ps, s in ((first, 1), (second, 2)) for p in ps]
    prediction.predict()
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-12, atol=1e-13)


# --- activation checkpointing --------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()).double()
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "interrupt",
    [
        lambda model, prediction: model.state_dict(),
        lambda model, prediction: copy.deepcopy(model),
        lambda model, prediction: prediction.restore(),
        lambda model, prediction: (
            model.eval()(torch.ones(1, 3).double().requires_grad_()),
            model.train(),
        ),
    ],
    ids=["state_dict", "copy", "restore", "evaluation"],
)
@pytest.mark.parametrize("cls", [torch.optim.AdamW, weightcast.AdamW])
def test_nothing_is_computed_anew_elsewhere_than_its_forward(cls, interrupt, reentrant) -> None:
    """It is refused, or the gradient is that at θ̂; and the next step is as ever."""
    model = Checkpointed(reentrant)
    optimizer = cls(model.parameters(), lr=0.1)
    prediction = weightcast.attach(model, optimizer, steps=3)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    for is_interrupted in (True, False):
        optimizer.zero_grad()
        loss = model(x).square().sum()
        if is_interrupted:
            interrupt(model, prediction)
            with pytest.raises((weightcast.WeightcastError, RuntimeError)):
                loss.backward()
        else:
            loss.backward()
            optimizer.step()
    hooks = [m for m in model.modules() if m._forward_pre_hooks and m is not model]
    assert not hooks


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("when", ["after the backward", "before the backward", "apart"])
@pytest.mark.parametrize("cls", [torch.optim.AdamW, weightcast.AdamW])
def test_an_evaluation_with_gradients_is_computed_anew_where_it_was(cls, when, reentrant) -> None:
    """An attack, or a saliency map: its gradient is that at θ, also where training waits for θ̂."""
    model = Checkpointed(reentrant)
    optimizer = cls(model.parameters(), lr=0.1)
    prediction = weightcast.attach(model, optimizer, steps=3)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    plain = copy.deepcopy(model)
    plain.reentrant = False
    (expected,) = torch.autograd.grad(plain(x).square().sum(), x)
    if when != "apart":
        loss = model(x).square().sum()
        assert prediction.is_predicted
    if when == "after the backward":
        loss.backward()
    judged = x.detach().clone().requires_grad_()
    model.eval()(judged).square().sum().backward()
    assert torch.equal(judged.grad, expected)
    model.train()
    if when == "before the backward":
        with pytest.raises((weightcast.WeightcastError, RuntimeError)):
            loss.backward()


def test_an_evaluation_without_gradients_disturbs_no_checkpointing() -> None:
    gradients = []
    for evaluates in (False, True):
        torch.manual_seed(0)
        model = Checkpointed(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        weightcast.attach(model, optimizer, steps=3)
        x = torch.ones(5, 3, dtype=torch.float64)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(x).square().sum()
            if evaluates:
                with torch.no_grad():
                    model.eval()(x)
                model.train()
            loss.backward()
            optimizer.step()
        gradients.append([p.grad for p in model.parameters()])
    assert same(*gradients)


# --- parameters that are replaced or cut ---------------------------------------------------------


def replace(optimizer: torch.optim.Optimizer, holder: nn.Module, name: str, new) -> nn.Parameter:
    """As codes of Gaussian splatting do it: a new Parameter, with the old one's state."""
    old = getattr(holder, name)
    (group,) = (g for g in optimizer.param_groups if any(p is old for p in g["params"]))
    index = next(n for n, p in enumerate(group["params"]) if p is old)
    state = optimizer.state.pop(old)
    parameter = nn.Parameter(new(old.detach()))
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.shape == old.shape:
            state[key] = new(value)
    optimizer.state[parameter] = state
    group["params"][index] = parameter
    setattr(holder, name, parameter)
    return parameter


REPLACED = [torch.optim.AdamW, weightcast.AdamW]


@pytest.mark.parametrize("own", OWN, ids=["lazy", "in step"])
@pytest.mark.parametrize("cls", [*REPLACED, torch.optim.NAdam])
def test_a_parameter_that_is_replaced_between_backward_and_step_is_true(cls, own) -> None:
    if own and cls is not weightcast.AdamW:
        pytest.skip("of our AdamW alone")
    model, optimizer, prediction = attached(cls, **own)
    optimizer.zero_grad()
    prediction.restore()
    theta = weights(model)
    backward(model)
    assert prediction.is_predicted
    replace(optimizer, model.first, "weight", torch.clone)
    prediction.restore()
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if own else {"rtol": 0, "atol": 0}
    for p, t in zip(model.parameters(), theta, strict=True):
        torch.testing.assert_close(p.detach(), t, **tolerance)


@pytest.mark.parametrize("own", OWN, ids=["lazy", "in step"])
@pytest.mark.parametrize("cls", REPLACED)
def test_a_parameter_that_is_cut_and_replaced_is_true(cls, own) -> None:
    """Pruned between backward and step: what is left of it goes back by what is left of Δ."""
    if own and cls is not weightcast.AdamW:
        pytest.skip("of our AdamW alone")
    model, optimizer, prediction = attached(cls, **own)
    prediction.restore()
    theta = weights(model)
    backward(model)
    new = replace(optimizer, model.first, "weight", lambda t: t[torch.tensor([0, 2])].clone())
    optimizer.zero_grad()
    prediction.restore()
    torch.testing.assert_close(new.detach(), theta[0][[0, 2]], rtol=1e-12, atol=1e-13)


def test_a_replaced_parameter_that_cannot_be_told_is_said() -> None:
    model, optimizer, prediction = attached(torch.optim.SGD)
    backward(model)
    replace(optimizer, model.first, "weight", lambda t: t[:2].clone())
    with pytest.warns(
        weightcast.PredictionWarning, match=r"shape \(4, 3\) was replaced .*\(2, 3\)"
    ):
        prediction.restore()


def kibibytes_alive() -> float:
    """Of all tensors that Python can reach."""
    gc.collect()
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if type(t) in (torch.Tensor, nn.Parameter)
    }
    return sum(storages.values()) / 1024


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of what else is collected
@pytest.mark.parametrize(
    "kind", [*ANALYTIC_AND_OBSERVED, {"optimizer_class": weightcast.AdamW}], ids=kind_id
)
def test_memory_of_parameters_that_are_gone_is_given_back(kind: dict) -> None:
    options = {k: v for k, v in kind.items() if k != "optimizer_class"}
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 1))
    optimizer = kind["optimizer_class"](model.parameters(), lr=0.05, **options)
    weightcast.attach(model, optimizer)
    alive = []
    for _ in range(12):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(2, 64)).square().sum().backward()
            optimizer.step()
        replace(optimizer, model[0], "weight", torch.clone)
        alive.append(kibibytes_alive())
    assert alive[-1] - alive[3] < 16  # one of them


@pytest.mark.parametrize("cls", REPLACED)
def test_weights_that_are_cut_while_predicted_lock_nothing(cls) -> None:
    model, _optimizer, prediction = attached(cls)
    prediction.predict()
    model.first.weight.data = model.first.weight.data[:, :2].clone()
    with pytest.warns(weightcast.PredictionWarning, match="another shape"):
        prediction.restore()
    assert not prediction.is_predicted
    model.state_dict()
    prediction.detach()


def test_a_group_that_is_taken_away_at_the_forecast_goes_back() -> None:
    for cls in REPLACED:
        model = Recorder()
        groups = [{"params": list(m.parameters())} for m in (model.first, model.second)]
        optimizer = cls(groups, lr=0.05)
        prediction = weightcast.attach(model, optimizer)
        train(model, optimizer)
        theta = weights(model)
        prediction.predict()
        optimizer.param_groups.pop()
        prediction.restore()
        assert same(weights(model), theta)


def test_lazy_modules_may_be_attached_before_their_first_forward() -> None:
    ends = []
    for steps in (None, 0):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Lazy modules")
            model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        if steps == 0:
            weightcast.attach(model, optimizer, steps=0)
        for k in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 3) + k).square().sum().backward()
            optimizer.step()
        ends.append(weights(model))
    assert same(*ends)


# --- merging -------------------------------------------------------------------------------------


class Merged(nn.Linear):
    """A layer with a low-rank part that it adds to its weight and subtracts again, as PEFT's."""

    def __init__(self) -> None:
        super().__init__(3, 4, bias=False, dtype=torch.float64)
        self.weight.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, 3, dtype=torch.float64))
        self.up = nn.Parameter(torch.randn(4, 2, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T

    def merge(self) -> None:
        self.weight.data += self.up.data @ self.down.data

    def unmerge(self) -> None:
        self.weight.data -= self.up.data @ self.down.data


@pytest.mark.parametrize("cls", REPLACED)
def test_weights_are_merged_and_unmerged_at_theta(cls) -> None:
    model = Merged()
    frozen = model.weight.detach().clone()
    optimizer = cls([model.up, model.down], lr=0.5)
    prediction = weightcast.attach(model, optimizer)
    x = torch.ones(2, 3, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        model.merge()
        up, down = model.up.detach().clone(), model.down.detach().clone()
        torch.testing.assert_close(model.state_dict()["weight"], frozen + up @ down)
        model.unmerge()
        torch.testing.assert_close(model.weight, frozen, rtol=1e-12, atol=1e-12)
        assert torch.equal(model.state_dict()["up"], up)
        model(x).square().sum().backward()
        optimizer.step()
    twin = copy.deepcopy(model)
    prediction.detach()
    for one in (twin, model):
        assert "merge" not in vars(one)


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.NAdam, weightcast.AdamW])
def test_true_weights_can_be_read_while_a_backward_waits(cls) -> None:
    """A target network's average, as SAC and TD3 take it after the actor's loss."""
    model, optimizer, prediction = attached(cls)
    theta = weights(model)
    loss = model(data(model)).square().mean()
    hat = weights(model)
    with prediction.true_weights() as same_handle:
        assert same_handle is prediction
        assert same(weights(model), theta)
    assert same(weights(model), hat)
    assert not same(hat, theta)
    optimizer.zero_grad()
    loss.backward()  # the graph is valid still
    optimizer.step()
    with prediction.true_weights():
        now = weights(model)
    assert same(now, weights(model))


def test_what_is_written_to_the_true_weights_stays() -> None:
    model, _, prediction = attached()
    theta = weights(model)
    prediction.predict()
    with prediction.true_weights(), torch.no_grad():
        model.first.weight.mul_(2)
    assert torch.equal(model.first.weight, 2 * theta[0])
    prediction.restore()
    assert torch.equal(model.first.weight, 2 * theta[0])
