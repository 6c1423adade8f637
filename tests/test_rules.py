"""A rule's displacement is what the last step did, for every optimizer and option of torch."""

import copy

import pytest
import torch

import weightcast
from tests.discovery import (
    DEVICE,
    case_id,
    cases,
    decoupled,
    optimizers,
    set_gradients,
    shapes,
)
from tests.oracles.by_hand import ByHand, last_displacement
from weightcast.displacement.reach import damped_steps, decay_factor
from weightcast.displacement.rules import OBSERVED, rule_for

CASES = cases()


class Bag(torch.nn.Module):
    """A module that only holds parameters and pulls them towards random targets."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        super().__init__()
        self.tensors = torch.nn.ParameterList(tensors)

    def forward(self, targets: list[torch.Tensor]) -> torch.Tensor:
        distances = (p - t for p, t in zip(self.tensors, targets, strict=True))
        return sum((d * d.conj()).real.sum() ** 0.5 for d in distances)


def build(cls: type, setting: dict) -> tuple[Bag, torch.optim.Optimizer]:
    tensors = (torch.randn(shape, dtype=torch.float64, device=DEVICE) for shape in shapes(cls))
    model = Bag(*tensors)
    return model, cls(model.parameters(), **copy.deepcopy(setting))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, setting: dict) -> None:
    # torch computes 1 - β^t in float32 where the step count is a tensor in its formula
    relative = 2e-5 if {"capturable", "differentiable"} & setting.keys() else 1e-9
    scale = expected.abs().max().clamp(min=1e-3).item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * scale)


@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")
@pytest.mark.filterwarnings("ignore:lr as a Tensor")
@pytest.mark.filterwarnings("ignore::weightcast.PredictionWarning")  # no forward here
@pytest.mark.parametrize(("cls", "setting"), CASES, ids=case_id)
def test_displacement_is_the_last_change(cls: type, setting: dict) -> None:
    """R11 and the universal oracle: Δ = (1 - γλ)·θ_before - θ_after."""
    model, optimizer = build(cls, setting)
    if setting.get("differentiable"):
        model.requires_grad_(False)  # so that torch may update leaves in place
    prediction = weightcast.attach(model, optimizer)
    params = list(model.tensors)
    for _ in range(8):  # RAdam changes its formula at the sixth step
        set_gradients(optimizer)
        before = [p.detach().clone() for p in params]
        optimizer.step()
        group = optimizer.param_groups[0]
        observed = OBSERVED in optimizer.state[params[0]]
        per_lr = last_displacement(optimizer, before, decoupled(optimizer, group) and not observed)
        displacements = dict(prediction.displacements())
        assert list(displacements) == params
        for p, direction in zip(params, per_lr, strict=True):
            assert_close(displacements[p], float(group["lr"]) * direction, setting)


@pytest.mark.filterwarnings("ignore:lr as a Tensor")
@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable")
@pytest.mark.parametrize(
    ("cls", "setting"),
    [case for case in CASES if "differentiable" not in case[1]],  # leaves cannot be trained so
    ids=case_id,
)
def test_training_equals_algorithm_1_by_hand(cls: type, setting: dict) -> None:
    """R3, R11, R13, R14: the same weights as a hand-written loop, with a changing lr."""
    model, optimizer = build(cls, setting)
    reference = copy.deepcopy(model)
    by_hand_optimizer = cls(reference.parameters(), **copy.deepcopy(setting))
    weightcast.attach(model, optimizer, steps=2)
    group = optimizer.param_groups[0]
    analytic = cls.__name__ in {"Adam", "AdamW", "Adamax", "RMSprop", "Rprop", "SGD"} or (
        cls.__name__ == "RAdam" and not setting.get("capturable")
    )
    by_hand = ByHand(by_hand_optimizer, 2, analytic and decoupled(optimizer, group))

    def backward(module: Bag) -> None:
        module([torch.zeros_like(p) for p in module.tensors]).backward()
        if cls is torch.optim.SparseAdam:
            for p in module.tensors:
                p.grad = p.grad.to_sparse()

    for iteration in range(8):
        by_hand.iterate(lambda: backward(reference))
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
        # Rprop keeps step sizes of its own and does not look at the learning rate
        if iteration == 4 and cls is not torch.optim.Rprop:
            for o in (optimizer, by_hand_optimizer):
                o.param_groups[0]["lr"] = o.param_groups[0]["lr"] * 0.5
    for p, q in zip(model.tensors, reference.tensors, strict=True):
        assert_close(p.detach(), q.detach(), setting)


def test_discovery_finds_the_optimizers_and_their_options() -> None:
    names = {cls.__name__ for cls in optimizers()}
    assert names >= {
        "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam",
        "RAdam", "RMSprop", "Rprop", "SGD", "SparseAdam",
    }  # fmt: skip
    tried = {name for cls, setting in CASES if cls.__name__ == "AdamW" for name in setting}
    assert tried >= {
        "amsgrad", "maximize", "foreach", "capturable", "differentiable", "fused", "lr",
        "weight_decay",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adamax", "RAdam", "Rprop"])
def test_analytic_rules_keep_no_buffer(name: str) -> None:
    """Only what the state cannot tell is observed."""
    model = Bag(torch.randn(3))
    optimizer = getattr(torch.optim, name)(model.parameters())
    prediction = weightcast.attach(model, optimizer)
    set_gradients(optimizer)
    optimizer.step()
    assert OBSERVED not in optimizer.state[model.tensors[0]]
    assert len(dict(prediction.displacements())) == 1


@pytest.mark.parametrize("setting", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_sgd_is_observed_where_the_last_gradient_matters(setting: dict) -> None:
    model = Bag(torch.randn(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **setting)
    weightcast.attach(model, optimizer)
    set_gradients(optimizer)
    optimizer.step()
    plain_momentum = "momentum" in setting and "nesterov" not in setting
    assert (OBSERVED in optimizer.state[model.tensors[0]]) is not plain_momentum


@pytest.mark.filterwarnings("ignore::weightcast.PredictionWarning")  # no forward here
@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adamax", "RAdam", "SGD", "RMSprop", "Rprop"])
@pytest.mark.parametrize("rule", [None, "observed"])
def test_complex_parameters(name: str, rule: str | None) -> None:
    model = Bag(torch.randn(3, dtype=torch.complex128), torch.randn(2, dtype=torch.float64))
    momentum = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.05, **momentum)
    prediction = weightcast.attach(model, optimizer, steps=1, rule=rule)
    for _ in range(3):
        before = [p.detach().clone() for p in model.tensors]
        set_gradients(optimizer)
        optimizer.step()
    changes = dict(prediction.displacements())
    after = [p.detach().clone() for p in model.tensors]
    decay = 1 - 0.05 * 0.01 if name == "AdamW" and rule is None else 1
    with prediction.predicted():
        for p, start, end in zip(model.tensors, before, after, strict=True):
            torch.testing.assert_close(changes[p], decay * start - end, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(p.detach(), end - changes[p])
    assert all(map(torch.equal, model.tensors, after))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sparse_gradients(momentum: float) -> None:
    embedding = torch.nn.Embedding(6, 2, sparse=True, dtype=torch.float64)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1, momentum=momentum)
    prediction = weightcast.attach(embedding, optimizer, steps=1)
    for rows in ([0, 1], [1, 3]):
        before = embedding.weight.detach().clone()
        optimizer.zero_grad()
        embedding(torch.tensor(rows)).square().sum().backward()
        optimizer.step()
    ((_, delta),) = prediction.displacements()
    torch.testing.assert_close(delta, before - embedding.weight.detach())
    assert delta[3].abs().sum() > 0
    assert delta[5].abs().sum() == 0


def test_a_subclass_that_keeps_step_keeps_the_rule() -> None:
    class Renamed(torch.optim.AdamW):
        pass

    model = Bag(torch.randn(3))
    optimizer = Renamed(model.parameters())
    weightcast.attach(model, optimizer)
    set_gradients(optimizer)
    optimizer.step()
    assert OBSERVED not in optimizer.state[model.tensors[0]]


def test_a_subclass_with_its_own_step_is_observed() -> None:
    class Twice(torch.optim.AdamW):
        def step(self, closure=None):
            super().step(closure)
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.mul_(0.5)

    model = Bag(torch.randn(3, dtype=torch.float64))
    optimizer = Twice(model.parameters())
    prediction = weightcast.attach(model, optimizer)
    set_gradients(optimizer)
    before = model.tensors[0].detach().clone()
    optimizer.step()
    ((_, delta),) = prediction.displacements()
    torch.testing.assert_close(delta, before - model.tensors[0].detach())


def test_register_rule_teaches_an_optimizer() -> None:
    class SignDescent(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr, "weight_decay": 0.5})

        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                self.state[p]["sign"] = p.grad.sign()
                p.mul_(1 - self.param_groups[0]["lr"] * 0.5)
                p.sub_(self.state[p]["sign"], alpha=self.param_groups[0]["lr"])

    @weightcast.register_rule(SignDescent, decoupled_weight_decay=True)
    def sign_descent(state, group):
        return group["lr"] * state["sign"]

    model = Bag(torch.randn(3))
    optimizer = SignDescent(model.parameters(), lr=0.1)
    prediction = weightcast.attach(model, optimizer, steps=2, weight_decay=True)
    set_gradients(optimizer)
    optimizer.step()
    theta, sign = model.tensors[0].detach().clone(), optimizer.state[model.tensors[0]]["sign"]
    with prediction.predicted():
        expected = (1 - 0.1 * 0.5) ** 2 * theta - 2 * 0.1 * sign
        torch.testing.assert_close(model.tensors[0].detach(), expected)
    assert OBSERVED not in optimizer.state[model.tensors[0]]


def test_register_rule_refuses_what_is_no_optimizer() -> None:
    with pytest.raises(weightcast.InvalidTypeError, match=r"subclass of torch\.optim\.Optimizer"):
        weightcast.register_rule(torch.nn.Linear)


@pytest.mark.parametrize(("steps", "expected"), [(1, 0.9), (2, 1.71), (3, 2.439), (0, 0.0)])
def test_damped_steps_is_the_geometric_sum(steps: float, expected: float) -> None:
    """R31, figures of the requirement itself."""
    group = {"betas": (0.9, 0.999)}
    assert damped_steps(steps, group) == pytest.approx(expected)
    assert damped_steps(-steps, group) == pytest.approx(-expected)


def test_damped_steps_limits() -> None:
    assert damped_steps(float("inf"), {"momentum": 0.9}) == pytest.approx(9.0)
    assert damped_steps(3, {"momentum": 1.0}) == 3
    assert damped_steps(3, {"momentum": 0.0}) == 0
    halves = damped_steps(0.5, {"betas": (0.81, 0.9)})
    assert halves == pytest.approx(0.81 * (1 - 0.9) / 0.19)
    with pytest.raises(weightcast.InvalidArgumentError, match="betas or momentum"):
        damped_steps(3, {"params": [], "lr": 0.1})


def test_which_weight_decay_is_decoupled() -> None:
    """Also where the group does not say so: AdamW's did not before torch 2.7."""
    group = {"lr": 0.1, "weight_decay": 0.5}
    parameters = [torch.zeros(1)]
    assert decay_factor(rule_for(torch.optim.AdamW(parameters)), group, 2) == 0.95**2
    assert decay_factor(rule_for(torch.optim.Adam(parameters)), group, 2) == 1
    chosen = {**group, "decoupled_weight_decay": True}
    assert decay_factor(rule_for(torch.optim.Adam(parameters)), chosen, 2) == 0.95**2
    assert decay_factor(rule_for(torch.optim.AdamW(parameters)), {"lr": 0.1}, 2) == 1


def test_parameters_that_share_one_state_are_all_predicted() -> None:
    """Some optimizers keep the state of a pair with its first member (low-rank adapters do)."""

    class Paired(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.sub_(p.grad, alpha=0.1)
            self.state[self.param_groups[0]["params"][0]]["step"] = 1

    model = Bag(torch.randn(3), torch.randn(2))
    optimizer = Paired(model.parameters())
    prediction = weightcast.attach(model, optimizer, 1)
    for _ in range(2):
        set_gradients(optimizer)
        before = [p.detach().clone() for p in model.tensors]
        with prediction.predicted():
            pass
        optimizer.step()
    for (p, delta), start in zip(prediction.displacements(), before, strict=True):
        torch.testing.assert_close(delta, start - p.detach())
    assert not optimizer.state.get(model.tensors[1])  # still for the optimizer to initialise
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(list(prediction.displacements())) == 1


def test_an_observed_displacement_includes_weight_decay_once() -> None:
    """Also where a group says that it is decoupled."""
    model = torch.nn.Linear(3, 1).double()
    optimizer = torch.optim.NAdam(
        model.parameters(), lr=0.1, weight_decay=0.5, decoupled_weight_decay=True
    )
    prediction = weightcast.attach(model, optimizer, 2, weight_decay=True)
    for _ in range(3):
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        model(torch.ones(4, 3).double()).square().mean().backward()
        optimizer.step()
    theta = model.weight.detach().clone()
    with prediction.predicted():
        torch.testing.assert_close(model.weight.detach(), theta - 2 * (before - theta))
