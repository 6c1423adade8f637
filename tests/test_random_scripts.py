"""Random training scripts train as Algorithm 1 written out by hand (R5-R7, R10, R14, R16, R17).

`WEIGHTCAST_SCRIPTS=10000 pytest tests/test_random_scripts.py -n 0` runs more of them;
`WEIGHTCAST_FIRST_SCRIPT=123` says where to begin.
"""

from __future__ import annotations

import copy
import io
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightcast
from tests.helpers import same, weights
from tests.oracles.by_hand import last_displacement

FIRST = int(os.environ.get("WEIGHTCAST_FIRST_SCRIPT", "0"))
COUNT = int(os.environ.get("WEIGHTCAST_SCRIPTS", "300"))
IN_A_TEST = 50

pytestmark = [  # scripts that step seldom, and load what was saved elsewhere, are told so rightly
    pytest.mark.filterwarnings("ignore:weight prediction has done nothing so far"),
    pytest.mark.filterwarnings("ignore:weightcast.AdamW has not forecast"),
]

OPTIONS: dict[type, list[dict[str, Any]]] = {
    torch.optim.AdamW: [
        {},
        {"amsgrad": True},
        {"foreach": True},
        {"weight_decay": 0.0, "maximize": True},
        {"betas": (0.5, 0.9)},
    ],
    torch.optim.Adam: [{}, {"weight_decay": 0.1}],
    torch.optim.SGD: [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.5, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.5},
    ],
    torch.optim.NAdam: [{}],
    torch.optim.RAdam: [{}],
    torch.optim.Adagrad: [{}],
    torch.optim.RMSprop: [{}, {"momentum": 0.9}],
    torch.optim.Adamax: [{}],
    weightcast.AdamW: [{}, {"in_step": True}, {"amsgrad": True}, {"weight_decay": 0.3}],
}


class Network(nn.Module):
    """Three layers, the last of which not every batch uses."""

    def __init__(self, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, dtype=dtypes[0])
        self.second = nn.Linear(4, 1, dtype=dtypes[1])
        self.third = nn.Linear(4, 1, dtype=dtypes[0])
        self.uses_all = True

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x.to(self.first.weight.dtype)))
        out = self.second(hidden.to(self.second.weight.dtype)).to(hidden.dtype)
        return out + self.third(hidden) if self.uses_all else out


class Plan:
    """What a script is made of, drawn once for both worlds."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.seed, self.cls = seed, draw.choice(list(OPTIONS))
        self.options = draw.choice(OPTIONS[self.cls]) | {"lr": draw.choice([0.01, 0.05])}
        both = torch.float64, torch.float64
        mixed = torch.float64, torch.float32
        self.dtypes = draw.choice([both, both, both, mixed])
        self.groups = draw.choice([1, 2, 3])
        self.own_steps = draw.choice([None, 1, 0]) if self.groups > 1 else None
        if self.cls is weightcast.AdamW:
            self.own_steps = None  # its groups all have steps, which are set together
        self.steps = draw.choice([0, 0.5, 1, 2, 3, -1])
        self.actions = list(self._actions(draw))

    def _actions(self, draw: random.Random) -> Iterator[tuple[Any, ...]]:
        for _ in range(draw.randint(3, 9)):
            micro = [self._batch(draw) for _ in range(draw.choice([1, 1, 2, 3]))]
            between = [draw.choice(BETWEEN) for _ in micro]
            clip = draw.choice([None, None, 0.05, 1.0])
            ending = draw.choice(["step"] * 4 + ["closure", "skip"])
            yield "iterate", micro, between, clip, ending, draw.random() < 0.5
            for _ in range(draw.choice([0, 0, 1, 2])):
                yield draw.choice(
                    [
                        ("evaluate", draw.randint(0, 9)),
                        ("steps", draw.choice([0, 1, 2.5, 3, -1])),
                        ("rate", draw.randrange(self.groups), draw.choice([0.5, 0.9, 1.3])),
                        ("save",),
                        ("load", draw.random() < 0.5),
                        ("detach and attach",),
                        ("copy", draw.randint(0, 9)),
                        ("data", draw.choice([0.9, 1.1])),
                    ]
                )

    def _batch(self, draw: random.Random) -> tuple[int, bool]:
        return draw.randint(0, 99), draw.random() < 0.8

    def model(self) -> Network:
        torch.manual_seed(self.seed)
        return Network(self.dtypes)

    def optimizer(self, cls: type, model: Network) -> torch.optim.Optimizer:
        parts = [model.first, model.second, model.third]
        if self.groups < 3:
            parts = [nn.ModuleList(parts[: 4 - self.groups]), *parts[4 - self.groups :]]
        groups: list[dict[str, Any]] = [{"params": list(part.parameters())} for part in parts]
        if self.own_steps is not None:
            groups[0]["prediction_steps"] = self.own_steps
        options = {k: v for k, v in self.options.items() if k != "in_step"}
        if cls is weightcast.AdamW:
            options = self.options
        return cls(groups, **options)


BETWEEN = ["nothing"] * 6 + ["evaluate", "state_dict", "true_weights", "no_grad", "restore"]


def batch(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 3, generator=generator, dtype=torch.float64)


def loss_of(model: Network, item: tuple[int, bool], of: int) -> Tensor:
    model.uses_all = item[1]
    x = batch(item[0])
    return (model(x) - x.sum(1, keepdim=True)).square().mean() / of


class Ours:
    """A user's script."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.steps = plan, plan.steps
        self.saved: bytes | None = None
        self._begin()

    def _begin(self) -> None:
        self.model = self.plan.model()
        self.optimizer = self.plan.optimizer(self.plan.cls, self.model)
        self._attach()

    def _attach(self) -> None:
        self.prediction = weightcast.attach(self.model, self.optimizer, self.steps)

    def read(self) -> list[Tensor]:
        """θ, as a reader finds it."""
        with self.prediction.true_weights():
            return weights(self.model)

    def evaluate(self, seed: int) -> Tensor:
        self.model.uses_all = True
        with torch.no_grad():
            output = self.model.eval()(batch(seed))
        self.model.train()
        return output

    def iterate(self, micro: list, between: list, clip: float | None, ending: str, none: bool):
        def accumulate() -> None:
            for item, what in zip(micro, between, strict=True):
                loss = loss_of(self.model, item, len(micro))
                if what == "evaluate":
                    self.evaluate(1)
                elif what == "true_weights":
                    self.read()
                elif what == "no_grad":
                    with torch.no_grad():
                        self.model(batch(3))
                loss.backward()
                if what == "state_dict":
                    self.model.state_dict()
                elif what == "restore":
                    self.prediction.restore()
            if clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), clip, foreach=False)

        self.optimizer.zero_grad(set_to_none=none)
        if ending == "closure":
            self.optimizer.step(accumulate)
        else:
            accumulate()
            if ending == "step":
                self.optimizer.step()

    def set_steps(self, value: float) -> None:
        self.steps = self.prediction.steps = value

    def save(self) -> None:
        file = io.BytesIO()
        torch.save((self.model.state_dict(), self.optimizer.state_dict()), file)
        self.saved = file.getvalue()

    def load(self, anew: bool) -> None:
        """Into what is there, or as after a restart."""
        assert self.saved is not None
        if anew:
            self.prediction.detach()
            self._begin()
        model, optimizer = torch.load(io.BytesIO(self.saved), weights_only=True)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.prediction.steps = self.steps

    def detach_and_attach(self) -> None:
        self.prediction.detach()
        self._attach()


class ByHand:
    """The same with a plain optimizer: the weights are moved and put back in plain sight."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.steps = plan, plan.steps
        self.model = plan.model()
        cls = torch.optim.AdamW if plan.cls is weightcast.AdamW else plan.cls
        self.optimizer = plan.optimizer(cls, self.model)
        self.is_decoupled = cls is torch.optim.AdamW
        (*_, group) = self.optimizer.param_groups
        self.is_observed = (
            cls in (torch.optim.NAdam, torch.optim.Adagrad)
            or (cls in (torch.optim.SGD, torch.optim.RMSprop) and not group["momentum"])
            or bool(group.get("nesterov"))
        )
        self.params = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.per_lr: dict[int, Tensor] = {}
        self.saved: Any = None

    def evaluate(self, seed: int) -> Tensor:
        self.model.uses_all = True
        with torch.no_grad():
            return self.model(batch(seed))

    def iterate(self, micro: list, between: list, clip: float | None, ending: str, none: bool):
        self.optimizer.zero_grad(set_to_none=none)
        for item in micro:
            theta = [p.detach().clone() for p in self.params]
            self._move()
            loss_of(self.model, item, len(micro)).backward()
            with torch.no_grad():
                for p, t in zip(self.params, theta, strict=True):
                    p.copy_(t)
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip, foreach=False)
        if ending != "skip":
            theta = [p.detach().clone() for p in self.params]
            self.optimizer.step()
            self._remember(last_displacement(self.optimizer, theta, self.is_decoupled))

    def _remember(self, new: list[Tensor]) -> None:
        """A rule tells the last update that there was; what is observed may be none."""
        for n, (p, delta) in enumerate(zip(self.params, new, strict=True)):
            if not self.is_observed or self._reach(n):
                if self.is_observed or p.grad is not None:
                    self.per_lr[n] = delta
            else:
                self.per_lr.pop(n, None)

    def _reach(self, number: int) -> float:
        p = self.params[number]
        group = next(g for g in self.optimizer.param_groups if any(p is q for q in g["params"]))
        return group.get("prediction_steps", self.steps)

    @torch.no_grad()
    def _move(self) -> None:
        rates = [group["lr"] for group in self.optimizer.param_groups for _ in group["params"]]
        for n, delta in self.per_lr.items():
            self.params[n].sub_(self._reach(n) * rates[n] * delta)

    def set_steps(self, value: float) -> None:
        self.steps = value

    def save(self) -> None:
        state = self.model.state_dict(), self.optimizer.state_dict(), self.per_lr
        self.saved = copy.deepcopy(state)

    def load(self, anew: bool) -> None:
        if anew:
            self.optimizer.zero_grad(set_to_none=True)
        model, optimizer, per_lr = copy.deepcopy(self.saved)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.per_lr = per_lr

    def detach_and_attach(self) -> None:
        """What was observed goes."""
        if self.is_observed:
            self.per_lr = {}


def run(plan: Plan) -> None:
    ours, by_hand = Ours(plan), ByHand(plan)
    is_mixed = torch.float32 in plan.dtypes
    close = {"rtol": 2e-3, "atol": 2e-4} if is_mixed else {"rtol": 1e-7, "atol": 1e-8}

    def agree(a: list[Tensor], b: list[Tensor]) -> None:
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, **close)

    for name, *args in plan.actions:
        if name == "iterate":
            ours.iterate(*args)
            by_hand.iterate(*args)
            if not plan.options.get("in_step") and args[3] != "skip":
                agree(weights(ours.model), weights(by_hand.model))
        elif name == "evaluate":
            agree([ours.evaluate(*args)], [by_hand.evaluate(*args)])
        elif name == "copy":
            twin = copy.deepcopy(ours.model).eval()
            agree(weights(twin), weights(by_hand.model))
            assert not twin._forward_pre_hooks
        elif name == "steps":
            ours.set_steps(*args)
            by_hand.set_steps(*args)
        elif name == "rate":
            for world in (ours, by_hand):
                world.optimizer.param_groups[args[0]]["lr"] *= args[1]
        elif name == "save":
            ours.save()
            by_hand.save()
        elif name == "load" and ours.saved is not None:
            ours.load(*args)
            by_hand.load(*args)
        elif name == "detach and attach":
            ours.detach_and_attach()
            by_hand.detach_and_attach()
        elif name == "data":
            ours.prediction.restore()
            for world in (ours, by_hand):
                for p in world.model.parameters():
                    p.data.mul_(args[0])
    agree(ours.read(), weights(by_hand.model))
    before = ours.read()
    ours.prediction.detach()
    assert plan.options.get("in_step") or same(before, weights(ours.model))
    agree(weights(ours.model), weights(by_hand.model))


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, IN_A_TEST))
def test_random_scripts(first: int) -> None:
    failures: list[str] = []
    for seed in range(first, min(first + IN_A_TEST, FIRST + COUNT)):
        plan = Plan(seed)
        try:
            run(plan)
        except Exception as error:
            about = f"{plan.cls.__module__.split('.')[0]}.{plan.cls.__name__} {plan.options}"
            failures.append(f"{seed}: {about}, steps {plan.steps}: {str(error)[:300]}")
    assert not failures, "\n".join(failures)
