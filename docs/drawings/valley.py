"""Draws docs/drawings/*.svg: θ, θ̂ and the updates of three methods in a valley of two weights.

`python docs/drawings/valley.py` writes them; a test holds both together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

import weightcast

Point = tuple[float, float]

START, STEPS = (-2.3, 1.9), 14
STEEP, ANGLE = 8.0, math.radians(24)  # the valley is so much steeper across than along
LABELED = 2  # the step whose points are named

METHODS: dict[str, tuple[float, Callable[[nn.Module], Optimizer]]] = {
    "adamw": (0.0, lambda model: torch.optim.AdamW(model.parameters(), lr=0.5)),
    # SGD with momentum 0.9 forecast by 0.9 steps is Nesterov's method, exactly
    "nesterov": (0.9, lambda m: torch.optim.SGD(m.parameters(), lr=0.03, momentum=0.9)),
    "predicted-adamw": (3.0, lambda model: torch.optim.AdamW(model.parameters(), lr=0.5)),
}

COLORS = {
    "light": {"line": "#3949ab", "ahead": "#d84315", "valley": "#b0bec5", "text": "#37474f"},
    "dark": {"line": "#9fa8da", "ahead": "#ff8a65", "valley": "#546e7a", "text": "#cfd8dc"},
}

WIDTH, HEIGHT, SCALE = 320, 250, 54.0


class Valley(nn.Module):
    """½·(u² + 8·v²) of two weights, with u along the valley and v across."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(START, dtype=torch.float64))
        self.seen: Point = START

    def forward(self) -> torch.Tensor:
        """The height where the weights are now, which is remembered."""
        x, y = self.theta
        self.seen = (x.item(), y.item())
        u = x * math.cos(ANGLE) - y * math.sin(ANGLE)
        v = x * math.sin(ANGLE) + y * math.cos(ANGLE)
        return (u**2 + STEEP * v**2) / 2


def walk(steps: float, make: Callable[[nn.Module], Optimizer]) -> Iterator[tuple[Point, Point]]:
    """θ before each step, and θ̂, where its gradient was taken."""
    valley = Valley()
    optimizer = make(valley)
    weightcast.attach(valley, optimizer, steps=steps)
    for _ in range(STEPS):
        x, y = valley.theta.tolist()
        optimizer.zero_grad()
        valley().backward()
        optimizer.step()
        yield (x, y), valley.seen


def drawing(name: str, scheme: str) -> str:
    """The picture of a method as SVG."""
    colors, pairs = COLORS[scheme], list(walk(*METHODS[name]))
    shapes = [
        f'<ellipse cx="0" cy="0" rx="{_n(r)}" ry="{_n(r / math.sqrt(STEEP))}" '
        f'transform="rotate({_n(math.degrees(ANGLE))})" stroke="{colors["valley"]}"/>'
        for r in (0.35 * SCALE * k for k in (1, 3, 5, 7, 9, 11))
    ]
    thetas = [theta for theta, _ in pairs]
    path = " ".join(f"{_x(p)},{_y(p)}" for p in thetas)
    shapes.append(f'<polyline points="{path}" stroke="{colors["line"]}" stroke-width="2"/>')
    for theta, ahead in pairs:
        if math.dist(theta, ahead) > 1e-3:
            shapes += [
                f'<line x1="{_x(theta)}" y1="{_y(theta)}" x2="{_x(ahead)}" y2="{_y(ahead)}" '
                f'stroke="{colors["ahead"]}" stroke-width="1.3" stroke-dasharray="4 3"/>',
                f'<circle cx="{_x(ahead)}" cy="{_y(ahead)}" r="3.6" stroke="{colors["ahead"]}" '
                'stroke-width="1.6"/>',
            ]
    shapes += [
        f'<circle cx="{_x(p)}" cy="{_y(p)}" r="3.4" fill="{colors["line"]}"/>' for p in thetas
    ]
    theta, ahead = pairs[LABELED]
    shapes += [_label("θ", theta, colors["line"]), _label("minimum", (0.0, 0.0), colors["text"])]
    if theta != ahead:
        shapes.append(_label("θ̂", ahead, colors["ahead"]))
    box = f"{-WIDTH / 2:g} {-HEIGHT / 2:g} {WIDTH} {HEIGHT}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{WIDTH}" '
            f'height="{HEIGHT}" fill="none" font-family="sans-serif" font-size="17">',
            *shapes,
            "</svg>\n",
        ]
    )


def _label(text: str, at: Point, color: str) -> str:
    return f'<text x="{_x(at, 8)}" y="{_y(at, -8)}" fill="{color}">{text}</text>'


def _x(point: Point, shift: float = 0.0) -> str:
    return _n(SCALE * point[0] + shift)


def _y(point: Point, shift: float = 0.0) -> str:
    return _n(-SCALE * point[1] + shift)


def _n(value: float) -> str:
    return f"{round(value, 1) + 0.0:g}"


def main() -> None:
    """Write all of them."""
    for name in METHODS:
        for scheme in COLORS:
            path = Path(__file__).with_name(f"{name}-{scheme}.svg")
            path.write_text(drawing(name, scheme), "utf-8")


if __name__ == "__main__":
    main()
