"""The edge of stability on a network: full batches of digits, and the sharpest curvature."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import weightcast

ITERATIONS = 25
"""How many steps power iteration takes, each time from where it last ended."""


@dataclass(frozen=True)
class Sharpness:
    """A run's sharpest curvature, and the one at which a quadratic would become unstable.

    `curvature` is the median over the second half of the run.
    """

    steps: float
    rate: float
    edge: float
    curvature: float


def sharpness(steps: float, rate: float, beta: float = 0.9, length: int = 1_500) -> Sharpness:
    """Train a small network by full batches of gradient descent with momentum, forecast by s steps.

    Training sharpens the loss until its largest curvature is the edge of stability (Cohen et al.,
    ICLR 2021), and stays there. `rate` is the `lr` of `torch.optim.SGD`, (1-β)·γ: the edge is
    2·(1+β) / (lr·(1+2s)).
    """
    digits = load_digits()
    x = torch.tensor(digits.data[:300] / 16)
    y = nn.functional.one_hot(torch.tensor(digits.target[:300]), 10).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
        direction = [torch.randn_like(p) for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=beta)
    weightcast.attach(model, optimizer, steps=steps)

    def loss() -> Tensor:
        errors: Tensor = model(x) - y
        return errors.square().sum(1).mean() / 2

    found = []
    for step in range(length):
        model.train()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if step >= length // 2 and step % 20 == 0:
            model.eval()  # at θ
            curvature, direction = _largest_curvature(loss, list(model.parameters()), direction)
            found.append(curvature)
    edge = 2 * (1 + beta) / (rate * (1 + 2 * steps))
    return Sharpness(steps, rate, edge, statistics.median(found))


def _largest_curvature(
    loss: Callable[[], Tensor], weights: list[nn.Parameter], direction: list[Tensor]
) -> tuple[float, list[Tensor]]:
    """The Hessian's largest eigenvalue and its vector, by power iteration."""
    curvature = 0.0
    for _ in range(ITERATIONS):
        slopes = torch.autograd.grad(loss(), weights, create_graph=True)
        along = sum((slope * d).sum() for slope, d in zip(slopes, direction, strict=True))
        assert isinstance(along, Tensor)
        product = torch.autograd.grad(along, weights)
        curvature = float(sum((d * p).sum() for d, p in zip(direction, product, strict=True)))
        norm = torch.nn.utils.get_total_norm(product)
        direction = [p / norm for p in product]
    return curvature, direction
