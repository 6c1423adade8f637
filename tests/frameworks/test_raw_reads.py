"""Code that reads the parameters itself, and where it finds θ: what the recipes and the FAQ say."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightcast
from tests.frameworks.helpers import (
    BATCH,
    STEPS,
    adamw,
    largest_difference,
    mean_square,
    network,
    problem,
    trained_by_hand,
)
from tests.frameworks.loops import Attached, Loop, Written, batches, difference
from tests.helpers import same, weights


def average(target: nn.Module, source: nn.Module | list[Tensor], decay: float = 0.9) -> None:
    """As written everywhere: an average of what the parameters hold."""
    params = list(source.parameters()) if isinstance(source, nn.Module) else source
    with torch.no_grad():
        for kept, p in zip(target.parameters(), params, strict=True):
            kept.mul_(decay).add_(p, alpha=1 - decay)


@pytest.mark.cell("PyTorch", "a `state_dict()` that is kept, or saved in the background", "copy it")
def test_a_kept_state_dict() -> None:
    """R16: it is no copy, in PyTorch neither; the safe way is."""
    model = network()
    optimizer = adamw(model)
    weightcast.attach(model, optimizer, STEPS)
    for x, y in batches(1):
        optimizer.zero_grad()
        mean_square(model, x, y).backward()
        optimizer.step()
    theta = weights(model)
    kept, copied = model.state_dict(), copy.deepcopy(model.state_dict())
    mean_square(model, *problem()).backward()
    assert not same(list(kept.values()), theta)
    assert same(list(copied.values()), theta)
    optimizer.step()
    assert same(list(kept.values()), weights(model))
    assert same(list(copied.values()), theta)


@pytest.mark.parametrize("way", ["with predicted()", "predict()"])
@pytest.mark.cell("PyTorch", "GradCache", "`prediction.predicted()` around both passes")
def test_gradient_cache(way: str) -> None:
    """Both passes at θ̂: the same gradients as of the whole batch, by hand."""
    model = network()
    optimizer = adamw(model)
    prediction = weightcast.attach(model, optimizer, STEPS)

    def backward(x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            cached = torch.cat([model(part) for part in x.split(2)]).requires_grad_()
        (cached - y).square().mean().backward()
        for part, gradient in zip(x.split(2), cached.grad.split(2), strict=True):
            model(part).backward(gradient)

    for x, y in batches(2):
        optimizer.zero_grad()
        if way == "predict()":
            prediction.predict()
            backward(x, y)
        else:
            with prediction.predicted():
                backward(x, y)
        optimizer.step()
    assert largest_difference(model, trained_by_hand(2)) < 1e-14


class ActorCritic:
    """In the manner of SAC, TD3 and DDPG: the target follows the critic after the actor's step."""

    def __init__(self, loop: Loop, when: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.actor = nn.Linear(3, 1).double()
            self.critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.target, self.when = copy.deepcopy(self.critic), when
        self.running = [loop(net, adamw(net)) for net in (self.actor, self.critic)]

    def update(self, states: Tensor, rewards: Tensor) -> None:
        actor, critic = self.running

        def judge() -> None:
            with torch.no_grad():
                goal = rewards + 0.9 * self.target(torch.cat([states, rewards], 1))
            mean_square(self.critic, torch.cat([states, rewards], 1), goal).backward()

        def act() -> None:
            with critic.forecast():
                self.critic(torch.cat([states, self.actor(states)], 1)).mean().neg().backward()

        critic.iterate(judge)
        if self.when == "after the critic's step":
            average(self.target, self.critic)
        actor.iterate(act)
        if self.when == "after restore()" and isinstance(critic, Attached):
            critic.prediction.restore()
        if self.when != "after the critic's step":
            average(self.target, self.critic)


@pytest.mark.parametrize("when", ["after the critic's step", "after restore()"])
@pytest.mark.cell(
    "PyTorch",
    "target networks (SAC, TD3)",
    "average after the step of the network's own optimizer, or after `prediction.restore()`",
)
def test_a_target_network(when: str) -> None:
    """R6: the actor's loss moves the critic to θ̂ again, where an average would find it."""

    def script(loop: Loop, when: str = when) -> nn.Module:
        agent = ActorCritic(loop, when)
        for states, rewards in batches(3):
            agent.update(states, rewards)
        nets = nn.ModuleList([agent.actor, agent.critic, agent.target])
        nets[1].state_dict()  # puts θ back
        return nets

    assert difference(script) < 1e-13
    assert difference(lambda loop: script(loop, "after the actor's step")) > 1e-3


class MomentumContrast(nn.Module):
    """A query encoder, and a key encoder that follows it."""

    def __init__(self, follow: Callable[[], Any]) -> None:
        super().__init__()
        self.queries, self.keys, self.follow = network(), network().requires_grad_(False), follow

    def forward(self, x: Tensor) -> Tensor:
        self.follow()  # where MoCo averages
        with torch.no_grad():
            keys = self.keys(x.flip(0))
        return self.queries(x) * keys.detach() + self.queries(x)


@pytest.mark.cell(
    "PyTorch", "a momentum encoder (MoCo)", "average after step(), not in the forward"
)
@pytest.mark.parametrize("way", ["after step()", "restore() in the forward"])
def test_a_momentum_encoder(way: str) -> None:
    """R6: written out, the average within the forward reads θ."""

    def script(loop: Loop) -> nn.Module:
        def follow() -> None:
            if loop is Written:
                average(model.keys, running.by_hand.true)
            elif way == "restore() in the forward":
                running.prediction.restore()
                average(model.keys, model.queries)
                running.prediction.predict()

        model = MomentumContrast(follow)
        optimizer = torch.optim.AdamW(model.queries.parameters(), lr=0.05, weight_decay=0.0)
        running = loop(model, optimizer)
        if way == "after step()" and loop is Attached:
            optimizer.register_step_post_hook(lambda *_: average(model.keys, model.queries))
        for x, y in batches():
            running.iterate(lambda x=x, y=y: mean_square(model, x, y).backward())
        if way == "after step()" and loop is Written:
            average(model.keys, model.queries)  # as after the last step
        return model

    assert difference(script) < 1e-13


@pytest.mark.cell(
    "PyTorch", "rollouts with gradients (REINFORCE)", "the policy acts at the forecast"
)
def test_where_a_rollout_acts() -> None:
    """With gradients it is a training forward, whose θ̂ stays until the policy's next step."""
    model = network()
    optimizer = adamw(model)
    prediction = weightcast.attach(model, optimizer, STEPS)
    x, y = (t[:BATCH] for t in problem())
    for _ in range(2):
        optimizer.zero_grad()
        mean_square(model, x, y).backward()
        optimizer.step()
    theta = weights(model)
    with torch.no_grad():
        acts = model(x)
    assert same(weights(model), theta)
    acted = model(x)  # with gradients
    assert prediction.is_predicted
    assert not torch.equal(acted, acts)
    with torch.no_grad():
        assert torch.equal(model(x), acted)  # as the weights are
        assert torch.equal(model.eval()(x), acts)  # always at θ
        assert torch.equal(model.train()(x), acted)
    (acted - y).square().mean().backward()  # and the waiting graph is whole
    optimizer.step()
    assert not prediction.is_predicted
