"""The one line against the paper's Algorithm 1 in float64 NumPy (`oracles/algorithm1.py`)."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import weightcast
from tests.oracles.algorithm1 import Algorithm1, Arrays, Group, loss_and_gradient

STEPS = [0, 0.5, 1, 2, 3]
NAMES = ["w1", "b1", "w2", "b2"]
ITERATIONS = 200


def initial_weights(seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    sizes = {"w1": (6, 3), "b1": (6,), "w2": (2, 6), "b2": (2,)}
    return {name: random.normal(0, 0.5, size) for name, size in sizes.items()}


def batches(count: int, seed: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    for _ in range(count):
        x = random.normal(size=(8, 3))
        yield x, np.sin(x[:, :2]) + 0.1 * random.normal(size=(8, 2))


class Network(torch.nn.Module):
    """The oracle's network, differentiated by torch."""

    def __init__(self, theta: Arrays) -> None:
        super().__init__()
        for name, value in theta.items():
            setattr(self, name, torch.nn.Parameter(torch.tensor(value)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.w1.T + self.b1) @ self.w2.T + self.b2

    def loss(self, x: np.ndarray, target: np.ndarray) -> torch.Tensor:
        return 0.5 * (self(torch.tensor(x)) - torch.tensor(target)).square().mean()


def groups_of(reference: Algorithm1, network: Network) -> list[dict]:
    return [
        {
            "params": [getattr(network, name) for name in group.names],
            "lr": group.lr,
            "betas": group.betas,
            "eps": group.eps,
            "weight_decay": group.weight_decay,
        }
        for group in reference.groups
    ]


def schedule(iteration: int) -> float:
    """A warm-up, a plateau and a drop."""
    return min(1.0, (iteration + 1) / 20) * (0.1 if iteration > 120 else 1.0)


def run(
    reference: Algorithm1,
    optimizer: torch.optim.Optimizer,
    iterate: Callable[[list], None],
    accumulate: int = 1,
    iterations: int = ITERATIONS,
) -> None:
    """Both sides on the same batches, under a changing learning rate."""
    rates = [group.lr for group in reference.groups]
    data = batches(iterations * accumulate)
    for iteration in range(iterations):
        for group, settings, lr in zip(
            reference.groups, optimizer.param_groups, rates, strict=True
        ):
            group.lr = settings["lr"] = lr * schedule(iteration)
        micro_batches = [next(data) for _ in range(accumulate)]
        reference.iterate(micro_batches)
        iterate(micro_batches)


def assert_equal(network: Network, reference: Algorithm1, atol: float = 1e-10) -> None:
    for name in NAMES:
        np.testing.assert_allclose(
            getattr(network, name).detach().numpy(), reference.theta[name], rtol=0, atol=atol
        )


def plain_loop(network: Network, optimizer: torch.optim.Optimizer) -> Callable[[list], None]:
    def iterate(micro_batches: list) -> None:
        optimizer.zero_grad()
        for x, target in micro_batches:
            network.loss(x, target).backward()
        optimizer.step()

    return iterate


def closure_loop(network: Network, optimizer: torch.optim.Optimizer) -> Callable[[list], None]:
    def iterate(micro_batches: list) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            losses = [network.loss(x, target) for x, target in micro_batches]
            total = torch.stack(losses).sum()
            total.backward()
            return total

        optimizer.step(closure)

    return iterate


LOOPS = pytest.mark.parametrize("loop", [plain_loop, closure_loop])


def test_the_reference_differentiates_rightly() -> None:
    """The oracle's own gradient, against finite differences."""
    theta = initial_weights()
    x, target = next(batches(1))
    _, gradient = loss_and_gradient(theta, x, target)
    for name, index in [("w1", (2, 1)), ("b1", (3,)), ("w2", (1, 4)), ("b2", (0,))]:
        losses = []
        for sign in (1, -1):
            moved = {key: value.copy() for key, value in theta.items()}
            moved[name][index] += sign * 1e-6
            losses.append(loss_and_gradient(moved, x, target)[0])
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(gradient[name][index], rel=1e-6)


@LOOPS
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.cell("PyTorch", "gradient accumulation")
def test_adamw_equals_the_paper(
    loop: Callable, steps: float, amsgrad: bool, accumulate: int
) -> None:
    """R4, R11cd, R13, R14, R21: changing lr, amsgrad, decay, groups, accumulation, closures."""
    theta = initial_weights()
    network = Network(theta)
    groups = [
        Group(["w1", "b1"], lr=0.02, weight_decay=0.1, steps=steps),
        Group(["w2", "b2"], lr=0.005, betas=(0.8, 0.95), eps=1e-4, steps=steps),
    ]
    reference = Algorithm1(theta, groups, amsgrad=amsgrad)
    optimizer = torch.optim.AdamW(groups_of(reference, network), amsgrad=amsgrad)
    weightcast.attach(network, optimizer, steps=steps)
    run(reference, optimizer, loop(network, optimizer), accumulate)
    assert_equal(network, reference)


def test_groups_with_steps_of_their_own() -> None:
    """A group's "prediction_steps" wins (R14)."""
    theta = initial_weights()
    network = Network(theta)
    groups = [Group(["w1", "b1"], steps=3), Group(["w2"], steps=1.5), Group(["b2"], steps=0)]
    reference = Algorithm1(theta, groups)
    settings = groups_of(reference, network)
    settings[1]["prediction_steps"] = 1.5
    settings[2]["prediction_steps"] = 0
    optimizer = torch.optim.AdamW(settings)
    weightcast.attach(network, optimizer, steps=3)
    run(reference, optimizer, plain_loop(network, optimizer))
    assert_equal(network, reference)


@pytest.mark.parametrize("damped", [False, True])
@pytest.mark.parametrize("weight_decay", [False, True])
def test_options(damped: bool, weight_decay: bool) -> None:
    """R13, R31: damped steps and predicted weight decay."""
    theta = initial_weights()
    network = Network(theta)
    reference = Algorithm1(
        theta,
        [Group(NAMES, weight_decay=0.3, steps=3)],
        damped=damped,
        predict_weight_decay=weight_decay,
    )
    optimizer = torch.optim.AdamW(groups_of(reference, network))
    weightcast.attach(network, optimizer, 3, damped=damped, weight_decay=weight_decay)
    run(reference, optimizer, plain_loop(network, optimizer))
    assert_equal(network, reference)


def test_the_placement_of_epsilon_is_torchs_own() -> None:
    """The paper writes √(v̂ + ε), torch √v̂ + ε: with a large ε they differ, and we follow torch."""
    theta = initial_weights()
    papers = initial_weights()
    network = Network(theta)
    group = Group(NAMES, eps=0.1, steps=2)
    reference = Algorithm1(theta, [group])
    inside = Algorithm1(papers, [Group(NAMES, eps=0.1, steps=2)], eps_inside_root=True)
    optimizer = torch.optim.AdamW(groups_of(reference, network))
    weightcast.attach(network, optimizer, 2)
    run(reference, optimizer, plain_loop(network, optimizer), iterations=20)
    for x, target in batches(20):
        inside.iterate([(x, target)])
    assert_equal(network, reference)
    assert np.abs(theta["w1"] - papers["w1"]).max() > 1e-3


def test_steps_may_change_at_any_time() -> None:
    theta = initial_weights()
    network = Network(theta)
    group = Group(NAMES)
    reference = Algorithm1(theta, [group])
    optimizer = torch.optim.AdamW(groups_of(reference, network))
    prediction = weightcast.attach(network, optimizer)
    iterate = plain_loop(network, optimizer)
    for (x, target), steps in zip(batches(12), [0, 3, 1, 2, 0.5, -1] * 2, strict=True):
        prediction.steps = group.steps = steps
        reference.iterate([(x, target)])
        iterate([(x, target)])
    assert_equal(network, reference)


def test_attaching_in_mid_training() -> None:
    """No state to checkpoint: on and off at any step, from the plain optimizer's own state."""
    theta = initial_weights()
    network = Network(theta)
    group = Group(NAMES)
    reference = Algorithm1(theta, [group])
    optimizer = torch.optim.AdamW(groups_of(reference, network))
    iterate = plain_loop(network, optimizer)
    data = batches(30)
    for steps in (0, 2, 0):
        group.steps = steps
        prediction = weightcast.attach(network, optimizer, steps=2) if steps else None
        for _ in range(10):
            batch = next(data)
            reference.iterate([batch])
            iterate([batch])
        if prediction:
            prediction.detach()
    assert_equal(network, reference)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_sgd_predicted_by_its_momentum_is_nesterov(momentum: float) -> None:
    """R11a: θ̂ follows torch's own nesterov=True (Sutskever et al. 2013), lr constant."""
    theta = initial_weights()
    predicted, nesterov = Network(theta), Network(theta)
    ours = torch.optim.SGD(predicted.parameters(), lr=0.1, momentum=momentum)
    theirs = torch.optim.SGD(nesterov.parameters(), lr=0.1, momentum=momentum, nesterov=True)
    prediction = weightcast.attach(predicted, ours, steps=momentum)
    for x, target in batches(100):
        plain_loop(predicted, ours)([(x, target)])
        plain_loop(nesterov, theirs)([(x, target)])
    with prediction.predicted():
        for p, q in zip(predicted.parameters(), nesterov.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-13)


def test_sgd_predicted_by_one_step_is_extrapolation_from_the_past() -> None:
    """R11b: Popov's method, w = θ - γ·g(w_last); θ ← θ - γ·g(w) (Gidel et al. 2019)."""
    theta = initial_weights()
    network = Network(theta)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    weightcast.attach(network, optimizer, steps=1)
    past = {name: np.zeros_like(value) for name, value in theta.items()}
    for x, target in batches(100):
        extrapolated = {name: theta[name] - 0.1 * past[name] for name in NAMES}
        _, past = loss_and_gradient(extrapolated, x, target)
        for name in NAMES:
            theta[name] -= 0.1 * past[name]
        plain_loop(network, optimizer)([(x, target)])
    for name in NAMES:
        np.testing.assert_allclose(getattr(network, name).detach().numpy(), theta[name], atol=1e-12)


@given(
    steps=st.floats(-3, 8),
    lr=st.floats(1e-4, 0.1),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0.5, 0.9999),
    weight_decay=st.floats(0, 0.5),
    decay=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_adamw_equals_the_paper_everywhere(steps, lr, beta1, beta2, weight_decay, decay, seed):
    theta = initial_weights(seed)
    network = Network(theta)
    group = Group(NAMES, lr, (beta1, beta2), 1e-6, weight_decay, steps)
    reference = Algorithm1(theta, [group], predict_weight_decay=decay)
    optimizer = torch.optim.AdamW(groups_of(reference, network))
    weightcast.attach(network, optimizer, steps, weight_decay=decay)
    run(reference, optimizer, plain_loop(network, optimizer), iterations=15)
    assert_equal(network, reference, atol=1e-8)
