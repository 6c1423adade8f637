"""Random training scripts never lose, compound or leak a prediction (R5-R7, R16, invariants 1-7).

Beside every script runs a model of it that knows only θ, the optimizer and the last displacement.
"""

import contextlib
import copy
import os

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import weightcast
from tests.helpers import ANALYTIC_AND_OBSERVED, Recorder, backward, data, same, weights
from tests.oracles.by_hand import last_displacement

# a script may step twice without a forward, which is rightly reported
pytestmark = pytest.mark.filterwarnings("ignore:weight prediction has done nothing so far")


class Twice(torch.optim.SGD):
    """Calls its closure twice within a step, as some do."""

    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        return super().step(closure)


KINDS = [*ANALYTIC_AND_OBSERVED, {"optimizer_class": Twice}]


class TrainingScript(RuleBasedStateMachine):
    """θ and Δ are tracked by hand; the weights that a forward sees must be θ or θ - s·Δ."""

    @initialize(
        kind=st.sampled_from(KINDS), steps=st.sampled_from([1, 2.5, 3]), is_tied=st.booleans()
    )
    def start(self, kind: dict, steps: float, is_tied: bool) -> None:
        torch.manual_seed(0)
        options = {k: v for k, v in kind.items() if k != "optimizer_class"}
        self.kind = kind["optimizer_class"]
        self.model = Recorder()
        if is_tied:  # two Parameters on one memory, whose decay is not told apart
            self.model.second.weight.data = self.model.first.bias.data.view(1, 4)
            options["weight_decay"] = 0.0
        self.is_tied = is_tied
        self.optimizer = self.kind(self.model.parameters(), lr=0.05, **options)
        self.prediction = weightcast.attach(self.model, self.optimizer, steps)
        self.optimizer.register_step_pre_hook(self.a_hook_of_others)
        self.theta = weights(self.model)
        self.per_lr: list | None = None
        self.pending: torch.Tensor | None = None
        self.stored = None

    def a_hook_of_others(self, *_) -> None:
        assert same(weights(self.model), self.theta)

    @property
    def present_versions(self) -> list[int]:
        """The graph of a forward is valid while nothing has touched its weights."""
        return [p._version for p in self.model.parameters()]

    @property
    def hat(self) -> list:
        if self.per_lr is None or self.prediction.optimizer is None:
            return self.theta
        lr = self.optimizer.param_groups[0]["lr"]
        s = self.prediction.steps
        return [t - s * lr * d for t, d in zip(self.theta, self.per_lr, strict=True)]

    def assert_saw(self, expected: list) -> None:
        for seen, value in zip(self.model.seen[-1], expected, strict=True):
            torch.testing.assert_close(seen, value, rtol=0, atol=1e-12)

    def remember_step(self) -> None:
        self.per_lr = last_displacement(self.optimizer, self.theta, self.kind is torch.optim.AdamW)
        self.theta = weights(self.model)

    @rule(seed=st.integers(0, 5))
    def training_forward(self, seed: int) -> None:
        x = data(self.model, seed)
        self.pending = self.model(x).square().mean()
        self.versions = self.present_versions
        self.assert_saw(self.hat)
        w1, b1, w2, b2 = leaves = [w.clone().requires_grad_() for w in self.hat]
        loss = (torch.tanh(x @ w1.T + b1) @ w2.T + b2).square().mean()
        self.gradient = torch.autograd.grad(loss, leaves)

    @rule(gradients=st.booleans())
    def evaluation_forward(self, gradients: bool) -> None:
        with torch.set_grad_enabled(gradients):
            self.model.eval()(data(self.model))
            self.model.train()
        assert same(self.model.seen[-1], self.theta)

    @rule()
    def training_forward_without_gradients(self) -> None:
        before, versions = weights(self.model), self.present_versions
        with torch.no_grad():
            self.model(data(self.model))
        assert same(self.model.seen[-1], before)
        assert self.present_versions == versions

    @precondition(lambda self: self.pending is not None and self.versions == self.present_versions)
    @rule()
    def run_backward(self) -> None:
        """A backward that PyTorch does not refuse has the gradient at θ̂."""
        params = list(self.model.parameters())
        before = [0 if p.grad is None else p.grad.clone() for p in params]
        self.pending.backward()
        self.pending = None
        for p, start, gradient in zip(params, before, self.gradient, strict=True):
            torch.testing.assert_close(p.grad - start, gradient, rtol=0, atol=1e-11)

    @rule(set_to_none=st.booleans())
    def zero_grad(self, set_to_none: bool) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    @precondition(lambda self: all(p.grad is not None for p in self.model.parameters()))
    @rule()
    def step(self) -> None:
        self.optimizer.step()
        self.remember_step()

    @rule(seed=st.integers(0, 5))
    def step_with_closure(self, seed: int) -> None:
        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            return backward(self.model, seed)

        expected = self.hat
        self.optimizer.step(closure)
        self.assert_saw(expected)
        if self.kind is Twice:
            for seen, value in zip(self.model.seen[-2], expected, strict=True):
                torch.testing.assert_close(seen, value, rtol=0, atol=1e-12)
        self.remember_step()

    @rule()
    def an_exception_in_a_closure(self) -> None:
        def closure() -> None:
            self.model(data(self.model))
            raise ArithmeticError

        with contextlib.suppress(ArithmeticError):
            self.optimizer.step(closure)

    def forget_unless_in_state(self) -> None:
        """An observed displacement goes when its prediction is detached."""
        if not dict(self.prediction.displacements()):
            self.per_lr = None

    @rule()
    def predict_and_restore(self) -> None:
        with self.prediction.predicted():
            for p, value in zip(self.model.parameters(), self.hat, strict=True):
                torch.testing.assert_close(p.detach(), value, rtol=0, atol=1e-12)

    @rule(steps=st.sampled_from([0.5, 1, 3, -1]))
    def change_steps(self, steps: float) -> None:
        self.prediction.steps = steps

    @rule(factor=st.sampled_from([0.5, 1.5]))
    def schedule(self, factor: float) -> None:
        self.optimizer.param_groups[0]["lr"] *= factor

    @rule()
    def save(self) -> None:
        self.stored = copy.deepcopy(
            (self.model.state_dict(), self.optimizer.state_dict(), self.per_lr)
        )
        assert same(list(self.stored[0].values()), self.theta)

    @precondition(lambda self: self.stored is not None)
    @rule()
    def load(self) -> None:
        model, optimizer, self.per_lr = copy.deepcopy(self.stored)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.theta = list(model.values())

    @precondition(lambda self: not self.prediction.is_predicted)
    @rule(factor=st.sampled_from([0.5, 0.9]))
    def write_through_data(self, factor: float) -> None:
        for p in list(self.model.parameters())[:2]:
            p.data.mul_(factor)
        # autograd does not count it: a graph that waits has another gradient now, as in PyTorch
        self.theta, self.pending = weights(self.model), None

    @precondition(lambda self: not self.prediction.is_predicted and not self.is_tied)
    @rule()
    def convert_there_and_back(self) -> None:
        self.model.float().double()
        self.theta, self.pending = weights(self.model), None

    @precondition(lambda self: not self.is_tied)
    @rule()
    def replace_a_parameter(self) -> None:
        """Wherever it is; an observed displacement may be lost with it."""
        old = self.model.first.weight
        new = torch.nn.Parameter(old.detach().clone())
        params = self.optimizer.param_groups[0]["params"]
        params[next(n for n, p in enumerate(params) if p is old)] = new
        if old in self.optimizer.state:
            self.optimizer.state[new] = self.optimizer.state.pop(old)
        self.model.first.weight = new
        self.pending = None
        if self.prediction.is_predicted:
            self.prediction.restore()
        if self.per_lr is not None and new not in dict(self.prediction.displacements()):
            self.per_lr = [torch.zeros_like(new), *self.per_lr[1:]]

    @rule()
    def read_the_true_weights(self) -> None:
        before, versions = weights(self.model), self.present_versions
        with self.prediction.true_weights():
            assert same(weights(self.model), self.theta)
        if self.model.training and versions == self.present_versions:
            assert same(weights(self.model), before)
        elif self.prediction.is_predicted:  # other settings are in force since
            for p, value in zip(self.model.parameters(), self.hat, strict=True):
                torch.testing.assert_close(p.detach(), value, rtol=0, atol=1e-12)

    @rule()
    def copy_the_model(self) -> None:
        twin = copy.deepcopy(self.model)
        assert same(weights(twin), self.theta)
        assert not twin._forward_pre_hooks

    @rule()
    def detach_and_attach(self) -> None:
        self.prediction.detach()
        assert same(weights(self.model), self.theta)
        self.prediction = weightcast.attach(self.model, self.optimizer, self.prediction.steps)
        self.forget_unless_in_state()

    @invariant()
    def the_weights_are_true_unless_predicted(self) -> None:
        if hasattr(self, "model") and not self.prediction.is_predicted:
            assert same(weights(self.model), self.theta)


TestTrainingScript = TrainingScript.TestCase
TestTrainingScript.settings = settings(
    max_examples=int(os.environ.get("WEIGHTCAST_SOAK", "200")),
    stateful_step_count=25,
    deadline=None,
)
