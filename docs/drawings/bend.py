"""A bent valley of two weights, and steps in it under `weightcast.attach`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

import weightcast

Point = tuple[float, float]

RADIUS, ACROSS, ALONG = 3.0, 6.0, 0.65  # the valley's bend, and how steep it is
RATE, MOMENTUM, AHEAD = 0.062, 0.8, 3


class Valley(nn.Module):
    """A valley that bends round the origin; its lowest point is (3, 0)."""

    def __init__(self) -> None:
        super().__init__()
        start = (3.3 * math.cos(2.15), 3.3 * math.sin(2.15))
        self.theta = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.seen: Point = start

    def forward(self) -> torch.Tensor:
        """The height where the weights are now, which is remembered."""
        x, y = self.theta
        self.seen = (x.item(), y.item())
        out, along = torch.hypot(x, y) - RADIUS, RADIUS * torch.atan2(y, x)
        return (ACROSS * out**2 + ALONG * along**2) / 2


@dataclass(frozen=True)
class Move:
    """One step: θ, θ̂ where its gradient is taken, that gradient's part of the step, θ after."""

    theta: Point
    ahead: Point
    pull: Point
    after: Point


def walk() -> Iterator[Move]:
    """The steps, one after another."""
    valley = Valley()
    optimizer = torch.optim.SGD(valley.parameters(), lr=RATE, momentum=MOMENTUM)
    weightcast.attach(valley, optimizer, steps=AHEAD)
    while True:
        x, y = valley.theta.tolist()
        optimizer.zero_grad()
        valley().backward()
        assert valley.theta.grad is not None
        pull_x, pull_y = (-RATE * valley.theta.grad).tolist()
        optimizer.step()
        after_x, after_y = valley.theta.tolist()
        yield Move((x, y), valley.seen, (pull_x, pull_y), (after_x, after_y))
