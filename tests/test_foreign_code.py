"""Other people's optimizers, hooks and writes: they see θ, or are told (invariants 3 and 6)."""

from __future__ import annotations

import copy
import os
import stat
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import weightcast
from tests.helpers import Recorder, attached, backward, data, same, train, weights

OWN = [{}, {"in_step": True}]
BOTH = [torch.optim.AdamW, weightcast.AdamW]
WRITTEN = r"the weights were written to while they were predicted.* prediction\.true_weights\(\)"


# --- hooks of others -----------------------------------------------------------------------------


@pytest.mark.parametrize("own", OWN, ids=["lazy", "in step"])
@pytest.mark.parametrize("is_global", [False, True], ids=["own", "of all"])
@pytest.mark.parametrize("cls", [*BOTH, torch.optim.NAdam])
def test_step_pre_hooks_of_others_see_the_true_weights(cls, is_global: bool, own: dict) -> None:
    """And what they write there stays: a clamp in a hook is the step's start."""
    if own and cls is not weightcast.AdamW:
        pytest.skip("of our AdamW alone")
    model, optimizer, prediction = attached(cls, dtype=torch.float64, **own)
    prediction.restore()
    theta = weights(model)
    seen = []

    @torch.no_grad()
    def clamp(*_: Any) -> None:
        seen.append(weights(model))
        for p in model.parameters():
            p.clamp_(-0.1, 0.1)

    if is_global:
        handle = register_optimizer_step_pre_hook(clamp)
    else:
        handle = optimizer.register_step_pre_hook(clamp)
    twin = copy.deepcopy(model)
    reference = torch.optim.NAdam if cls is torch.optim.NAdam else torch.optim.AdamW
    other = reference(twin.parameters(), lr=0.05)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in other.param_groups:
        group.pop("prediction_steps", None)
    for state in other.state.values():
        state.pop("prediction_displacement", None)
    try:
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
    finally:
        handle.remove()
    for a, b in zip(seen[0], theta, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-15 if own else 0)
    with torch.no_grad():
        for p, q, t in zip(twin.parameters(), model.parameters(), theta, strict=True):
            p.copy_(t.clamp(-0.1, 0.1))
            p.grad = q.grad.clone()
    other.step()
    prediction.restore()
    for a, b in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


# --- writes of others ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["counted", "data"])
@pytest.mark.parametrize("cls", [*BOTH, torch.optim.NAdam])
def test_what_others_write_to_the_forecast_is_said(cls, way: str) -> None:
    model, optimizer, _ = attached(cls)
    backward(model)
    for p in model.parameters():
        if way == "data":  # WGAN's clipping, hand-made decay
            p.data.mul_(0.5)
        else:
            with torch.no_grad():
                p.mul_(0.5)
    with pytest.warns(weightcast.PredictionWarning, match=WRITTEN) as caught:
        optimizer.step()
    assert "`with prediction.true_weights():`" in str(caught[0].message)  # says where it is safe


def test_an_embedding_that_renormalises_itself_is_said() -> None:
    model = nn.Sequential(nn.Embedding(4, 3, max_norm=1.0), nn.Linear(3, 1))
    optimizer = weightcast.AdamW(model.parameters(), lr=0.5)
    weightcast.attach(model, optimizer)
    x = torch.arange(4)
    with pytest.warns(weightcast.PredictionWarning, match=WRITTEN):
        for _ in range(5):
            optimizer.zero_grad()
            (-model(x).sum()).backward()
            optimizer.step()


@pytest.mark.parametrize("cls", [*BOTH, torch.optim.SGD])
def test_weights_that_were_moved_and_put_back_are_no_write(cls, silent) -> None:
    """SAM around an attached base optimizer: it climbs from the forecast, and comes back."""
    options = {"momentum": 0.9} if cls is torch.optim.SGD else {}
    model, optimizer, prediction = attached(cls, **options)
    for k in range(6):
        optimizer.zero_grad()
        backward(model, k)
        hat = weights(model)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1)
        backward(model, k)
        with torch.no_grad():
            for p, h in zip(model.parameters(), hat, strict=True):
                p.copy_(h)
        optimizer.step()
    assert prediction.steps == 2


# --- steps that are more than one ----------------------------------------------------------------


class Climber(torch.optim.Optimizer):
    """SAM, as it is commonly written, around SGD; it may call its closure twice."""

    def __init__(self, params, lr: float, rho: float = 0.05, twice: bool = False) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr)
        self.param_groups = self.base_optimizer.param_groups
        self.twice = twice

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.clone()
                p.add_(self.defaults["rho"] * p.grad)

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p].pop("old"))
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        if self.twice:
            closure()
        self.first_step()
        self.zero_grad()
        loss = closure()
        self.second_step()
        return loss


def sam_by_hand(theta: list, lr: float, rho: float, steps: float, iterations: int) -> list:
    """θ after each iteration: both gradients at the forecast, the second after a climb from it."""
    delta = [torch.zeros_like(t) for t in theta]
    ends = []
    for k in range(iterations):
        hat = [t - steps * d for t, d in zip(theta, delta, strict=True)]
        first = gradient_at(hat, k)
        climbed = [h + rho * g for h, g in zip(hat, first, strict=True)]
        second = gradient_at(climbed, k)
        delta = [lr * g for g in second]
        theta = [t - d for t, d in zip(theta, delta, strict=True)]
        ends.append(theta)
    return ends


def gradient_at(values: list, seed: int) -> list:
    model = Recorder()
    with torch.no_grad():
        for p, v in zip(model.parameters(), values, strict=True):
            p.copy_(v)
    backward(model, seed)
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("way", ["step", "step that calls twice", "two steps", "base"])
def test_sam_climbs_from_the_forecast_and_its_displacement_has_no_climb_in_it(way, silent) -> None:
    torch.manual_seed(0)
    model = Recorder()
    start = weights(model)
    optimizer = Climber(model.parameters(), lr=0.05, twice=way == "step that calls twice")
    if way == "base":
        with warnings.catch_warnings():
            prediction = weightcast.attach(model, optimizer.base_optimizer, steps=2)
            # an observed forecast cannot tell what was put back from what was not
            warnings.simplefilter("ignore", weightcast.PredictionWarning)
            got = run_climber(model, optimizer, way)
    else:
        prediction = weightcast.attach(model, optimizer, steps=2)
        got = run_climber(model, optimizer, way)
    expected = sam_by_hand(start, 0.05, 0.05, 2, 5)
    for ours, theirs in zip(got, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    prediction.detach()


def run_climber(model: Recorder, optimizer: Climber, way: str) -> list:
    ends = []
    for k in range(5):
        optimizer.zero_grad()
        if way != "step that calls twice":
            backward(model, k)
        if way in ("two steps", "base"):
            optimizer.first_step()
            optimizer.zero_grad()
            backward(model, k)
            optimizer.second_step()
        else:
            optimizer.step(lambda k=k: (optimizer.zero_grad(), backward(model, k))[1])
        ends.append(weights(model))
    return ends


def test_a_step_that_raised_is_followed_by_one_that_is_observed() -> None:
    class Fragile(torch.optim.SGD):
        fails = False

        def step(self, closure=None):
            if self.fails:
                raise ArithmeticError
            return super().step(closure)

    model, optimizer, prediction = attached(Fragile)
    optimizer.fails = True
    with pytest.raises(ArithmeticError):
        optimizer.step()
    optimizer.fails = False
    theta = weights(model)
    optimizer.step()
    deltas = dict(prediction.displacements())
    for p, t in zip(model.parameters(), theta, strict=True):
        torch.testing.assert_close(deltas[p], t - p.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
@pytest.mark.parametrize("maker", ["Adahessian", "AdaHessian", "SophiaH"])
def test_a_step_that_differentiates_again_does_so_at_the_forecast(maker: str) -> None:
    """The curvature belongs to the gradient's graph; θ is what is updated (R4)."""
    if maker == "Adahessian":
        cls = pytest.importorskip("timm.optim.adahessian").Adahessian
    else:
        cls = getattr(pytest.importorskip("pytorch_optimizer"), maker)
    torch.manual_seed(0)
    model = Recorder(torch.float32)
    optimizer = cls(model.parameters(), lr=0.05)
    prediction = weightcast.attach(model, optimizer, steps=2)
    seen = []
    for k in range(12):
        optimizer.zero_grad()
        model(data(model, k)).square().mean().backward(create_graph=True)
        hat = weights(model)
        optimizer.step()
        seen.append(not same(hat, weights(model)))
        for p in model.parameters():
            p.grad = p.grad.detach()
    assert all(seen)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert dict(prediction.displacements())
    prediction.detach()
    assert not {"set_hessian", "compute_hutchinson_hessian"} & vars(optimizer).keys()


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_curvature_is_that_at_the_forecast() -> None:
    """A quadratic with a cubic part, in one dimension: the second derivative tells where it is."""

    class Newton(torch.optim.Optimizer):
        def __init__(self, params) -> None:
            super().__init__(params, {"lr": 0.1})

        @torch.no_grad()
        def set_hessian(self) -> None:
            (w,) = self.param_groups[0]["params"]
            with torch.enable_grad():
                (self.curvature,) = torch.autograd.grad(w.grad, w)

        @torch.no_grad()
        def step(self) -> None:
            self.set_hessian()
            (w,) = self.param_groups[0]["params"]
            w.sub_(0.1 * w.grad / self.curvature.abs())

    class Cubic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self) -> torch.Tensor:
            return self.w**3

    model = Cubic()
    optimizer = Newton(model.parameters())
    weightcast.attach(model, optimizer, steps=2)
    theta, delta = 2.0, 0.0
    for _ in range(4):
        optimizer.zero_grad()
        model().backward(create_graph=True)
        optimizer.step()
        hat = theta - 2 * delta
        assert optimizer.curvature.item() == pytest.approx(6 * hat)
        delta = 0.1 * 3 * hat**2 / abs(6 * hat)
        theta -= delta
        assert model.w.item() == pytest.approx(theta, rel=1e-12)


# --- where hooks cannot see ----------------------------------------------------------------------


class Agent(nn.Module):
    """As actor-critic codes have them: no `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = Recorder()
        self.critic = nn.Linear(3, 1, dtype=torch.float64)

    def act(self, x: torch.Tensor) -> torch.Tensor:
        return self.actor(x) + self.critic(x)


@pytest.mark.parametrize("cls", BOTH)
def test_a_model_without_a_forward_is_predicted_by_its_parts(cls, silent) -> None:
    model = Agent()
    optimizer = cls(model.parameters(), lr=0.05)
    prediction = weightcast.attach(model, optimizer, steps=2)
    x = torch.ones(4, 3, dtype=torch.float64)
    for k in range(3):
        deltas = dict(prediction.displacements())
        expected = [p.detach() - 2 * deltas.get(p, 0) for p in model.actor.parameters()]
        optimizer.zero_grad()
        model.act(x).square().mean().backward()
        for seen, e in zip(model.actor.seen[-1], expected, strict=True):
            torch.testing.assert_close(seen, e, rtol=1e-9, atol=1e-11)
        assert k == 0 or prediction.is_predicted
        optimizer.step()


@pytest.mark.parametrize("cls", BOTH)
def test_the_part_that_runs_first_moves_all_of_the_optimizers_parameters(cls, silent) -> None:
    """What `attach` and its warning say of a loop that calls methods other than `forward`."""
    agent = Agent()
    optimizer = cls(agent.parameters(), lr=0.05)
    prediction = weightcast.attach(agent.actor, optimizer, steps=2)
    x = torch.ones(4, 3, dtype=torch.float64)
    for k in range(3):
        deltas = dict(prediction.displacements())
        expected = [p.detach() - 2 * deltas.get(p, 0) for p in agent.parameters()]
        optimizer.zero_grad()
        loss = agent.act(x).square().mean()
        for p, e in zip(agent.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), e, rtol=1e-9, atol=1e-11)
        loss.backward()
        assert k == 0 or prediction.is_predicted
        optimizer.step()


def test_what_is_trained_where_hooks_see_nothing_is_not_evaluated_at_a_forecast() -> None:
    model = Recorder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    weightcast.attach(model, optimizer)
    message = "has done nothing so far.*part that runs first"
    with pytest.warns(weightcast.PredictionWarning, match=message):
        for k in range(3):
            optimizer.zero_grad()
            model.forward(data(model, k)).square().mean().backward()
            optimizer.step()
    theta = weights(model)
    model(data(model))
    assert same(model.seen[-1], theta)


def test_each_handle_that_does_nothing_says_so_at_the_users_line_with_both_names() -> None:
    with pytest.warns(weightcast.PredictionWarning) as caught:
        for cls in (torch.optim.AdamW, torch.optim.SGD):
            model = Recorder()
            optimizer = cls(model.parameters(), lr=0.05)
            weightcast.attach(model, optimizer)
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            for _ in range(3):
                optimizer.step()
    assert [str(w.message).rsplit("(")[-1] for w in caught] == [
        "Recorder, AdamW)",
        "Recorder, SGD)",
    ]
    assert {w.filename for w in caught} == {__file__}


def test_nothing_is_said_of_a_forecast_that_is_turned_off(silent) -> None:
    """An observed displacement is forgotten then, before the closure runs."""
    model, optimizer, prediction = attached(torch.optim.Adagrad)
    prediction.steps = 0
    for k in range(3):
        optimizer.step(lambda k=k: (optimizer.zero_grad(), backward(model, k))[1])


# --- odds and ends -------------------------------------------------------------------------------


def test_a_subclass_of_a_schedule_free_optimizer_is_refused() -> None:
    class AdamWScheduleFree(torch.optim.AdamW):
        pass

    class Mine(AdamWScheduleFree):
        pass

    model = Recorder()
    with pytest.raises(weightcast.UnsupportedOptimizerError, match="Mine already evaluates"):
        weightcast.attach(model, Mine(model.parameters()))


@pytest.mark.parametrize("size", [1e18, 2e19, 1e20, 1e30])
def test_huge_gradients_are_no_more_than_torchs(size: float) -> None:
    """The one pass of the in-step forecast divides once for two: the product must not overflow."""
    ends = []
    for cls in BOTH:
        w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        options = {"in_step": True} if cls is weightcast.AdamW else {}
        optimizer = cls([w], lr=0.1, **options)
        for k in range(4):
            w.grad = torch.tensor([size, -size / 3, 1.0]) * (1 + k)
            optimizer.step()
        if cls is weightcast.AdamW:
            optimizer.eval()
        ends.append(w.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs owners of files")
def test_a_library_that_others_could_have_written_is_not_loaded(tmp_path) -> None:
    cpu = pytest.importorskip("weightcast.kernels.cpu", exc_type=ImportError)
    folder = tmp_path / "weightcast"
    folder.mkdir(mode=0o700)
    library = folder / "adamw.so"
    library.touch(mode=0o644)
    assert cpu._is_ours(library)
    folder.chmod(0o777)
    assert not cpu._is_ours(library)
    folder.chmod(0o700)
    library.chmod(library.stat().st_mode | stat.S_IWOTH)
    assert not cpu._is_ours(library)


@pytest.mark.parametrize("cls", BOTH)
def test_a_part_that_is_appended_later_is_saved_true(cls) -> None:
    model = nn.Sequential(Recorder())
    optimizer = cls(model.parameters(), lr=0.05)
    prediction = weightcast.attach(model, optimizer)
    extra = nn.Linear(1, 1, dtype=torch.float64)
    model.append(extra)
    optimizer.add_param_group({"params": list(extra.parameters())})
    for _ in range(2):
        optimizer.zero_grad()
        model(data(model)).square().mean().backward()
        optimizer.step()
    theta = weights(extra)
    model(data(model))
    assert not same(weights(extra), theta)
    assert same(list(extra.state_dict().values()), theta)
    prediction.detach()
    assert not extra._state_dict_pre_hooks


@pytest.mark.parametrize("cls", [torch.optim.NAdam, torch.optim.Adagrad])
def test_a_plain_distributed_checkpoint_loads_into_an_attached_optimizer(
    cls, tmp_path, caplog
) -> None:
    """It plans by the keys that are there: a displacement of a step at rate 0 is none of them."""
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    state_dict = pytest.importorskip("torch.distributed.checkpoint.state_dict")

    def made() -> tuple[Recorder, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Recorder()
        return model, cls(model.parameters(), lr=0.05)

    def state(model, optimizer) -> dict:
        own, its = state_dict.get_state_dict(model, optimizer)
        return {"model": own, "optimizer": its}

    model, optimizer = made()
    train(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state(model, optimizer), checkpoint_id=tmp_path)
    twin, other = made()
    prediction = weightcast.attach(twin, other, steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = state(twin, other)
        dcp.load(found, checkpoint_id=tmp_path)
        state_dict.set_state_dict(
            twin, other, model_state_dict=found["model"], optim_state_dict=found["optimizer"]
        )
    assert "holds no displacements" in caplog.text
    assert same(weights(twin), weights(model))
    backward(twin)
    prediction.restore()
    assert same(weights(twin), weights(model))
