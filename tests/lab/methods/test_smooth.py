"""The long form is what is published under other names, written out from their equations."""

import copy

import pytest
import torch
from torch import Tensor, nn

import weightcast
from weightcast_lab.methods.method import Method
from weightcast_lab.methods.smooth import Smooth

STEPS, LR, BETAS, EPS = 60, 0.02, (0.9, 0.99), 1e-8


class Adam:
    """m̂ / (√v̂ + ε) in float64, as both publications have it in their inner step."""

    def __init__(self, theta: Tensor) -> None:
        self.m, self.v, self.t = torch.zeros_like(theta), torch.zeros_like(theta), 0

    def direction(self, g: Tensor) -> Tensor:
        (b1, b2), self.t = BETAS, self.t + 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g * g
        return (self.m / (1 - b1**self.t)) / ((self.v / (1 - b2**self.t)).sqrt() + EPS)


def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return a @ a.T / 6, torch.randn(6, generator=generator, dtype=torch.float64)


def gradient(x: Tensor, h: Tensor) -> Tensor:
    return h @ x + 0.1 * x**3


def rate(t: int) -> float:
    return LR * (1 - t / STEPS)


def gpa(mu_x: float, mu_y: float, decay: float) -> tuple[list[Tensor], list[Tensor]]:
    """Meta's own loop: y and z in memory, the average x read off them; it decays y."""
    h, x = problem()
    y, z, adam = x.clone(), x.clone(), Adam(x)
    ys, xs = [], []
    for t in range(STEPS):
        ys.append(y)
        update = adam.direction(gradient(y, h)) + decay * y
        y = y + (1 - mu_x) * (z - y) + rate(t) * (mu_y * mu_x - 1) * update
        z = z - rate(t) * update
        xs.append((y - (1 - mu_y) * z) / mu_y)
    return ys, xs


def ema_nesterov(g: float, b: float, decay: float) -> list[Tensor]:
    """x ← y - Δ(y), e ← g·e + (1-g)·(x - x_before), y ← x + b·e."""
    h, x = problem()
    y, e, adam = x.clone(), torch.zeros_like(x), Adam(x)
    ys = []
    for t in range(STEPS):
        ys.append(y)
        before, x = x, y - rate(t) * (adam.direction(gradient(y, h)) + decay * y)
        e = g * e + (1 - g) * (x - before)
        y = x + b * e
    return ys


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h, x = problem()
        self.x = nn.Parameter(x)
        self.seen: list[Tensor] = []

    def forward(self) -> Tensor:
        x = self.x
        self.seen.append(x.detach().clone())
        return x @ self.h @ x / 2 + 0.025 * (x**4).sum()


def ours(beta: float, s: float, decay: float, scale: float = 1.0) -> tuple[Model, list[Tensor]]:
    model, thetas = Model(), []
    # the publications add λ·y to the direction; AdamW multiplies by 1 - γ·λ, the same
    base = torch.optim.AdamW(model.parameters(), LR, BETAS, EPS, weight_decay=decay)
    optimizer = Smooth(base, beta, ahead=s)
    weightcast.attach(model, optimizer, steps=s)
    for t in range(STEPS):
        optimizer.param_groups[0]["lr"] = scale * rate(t)
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        thetas.append(model.x.detach().clone())
    return model, thetas


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("mu_x", "mu_y"), [(0.95, 0.8), (0.9934, 0.7), (0.9, 0.9)])
def test_it_is_gpa(mu_x: float, mu_y: float, decay: float) -> None:
    ys, xs = gpa(mu_x, mu_y, decay)
    model, thetas = ours(mu_x, (1 - mu_y) * mu_x / (1 - mu_x), decay)
    for mine, theirs in zip([*model.seen, *thetas], [*ys, *xs], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("g", "b"), [(0.9, 0.5), (0.99, 0.9), (0.5, 0.3)])
def test_it_is_ema_nesterov(g: float, b: float, decay: float) -> None:
    beta = g + b - g * b
    model, _ = ours(beta, beta / (1 - g), decay, scale=1 / (1 - b))
    for mine, theirs in zip(model.seen, ema_nesterov(g, b, decay), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_on_sgd_it_is_momentum() -> None:
    """torch's buffer is a sum, M a mean: the rate is 1 - β times."""
    h, x = problem()
    p, q = nn.Parameter(x.clone()), nn.Parameter(x.clone())
    mine = Smooth(torch.optim.SGD([p], lr=0.1), 0.9)
    theirs = torch.optim.SGD([q], lr=0.1 * (1 - 0.9), momentum=0.9)
    for _ in range(STEPS):
        for one, optimizer in ((p, mine), (q, theirs)):
            one.grad = gradient(one.detach(), h)
            optimizer.step()
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_it_resumes() -> None:
    ends = []
    for cut in (None, 5):
        model = Model()
        optimizer = Smooth(torch.optim.AdamW(model.parameters(), LR), 0.95)
        prediction = weightcast.attach(model, optimizer, steps=4)
        for t in range(10):
            if t == cut:
                saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
                prediction.detach()
                model = Model()
                optimizer = Smooth(torch.optim.AdamW(model.parameters(), LR), 0.95)
                prediction = weightcast.attach(model, optimizer, steps=4)
                model.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
        ends.append(model.x)
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", ["smooth_adamw", "smooth_adamw8", "smooth_nadamw_mu"])
def test_it_is_a_method_of_the_laboratory(name: str) -> None:
    method = Method(name, steps=14, beta1=1 - 1 / 140)
    model = Model()
    optimizer = method.attach(model, 0.01)
    assert isinstance(optimizer, Smooth)
    assert optimizer.beta == 1 - 1 / 140
    for _ in range(3):
        model().backward()
        optimizer.step()
    assert method.name == f"{name}-b{1 - 1 / 140!r}-s14"
