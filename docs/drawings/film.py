"""What a picture in motion is made of: key frames of CSS, and a few shapes of SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Point = tuple[float, float]


@dataclass
class Film:
    """What moves: rules of CSS, all of one length, each with its key frames in seconds."""

    length: float
    rules: list[str] = field(default_factory=list)

    def play(self, name: str, *frames: tuple[float, str]) -> None:
        """The element of class `name` passes through these declarations at these seconds."""
        keys = " ".join(f"{100 * at / self.length:.2f}%{{{what}}}" for at, what in frames)
        self.rules.append(f"@keyframes {name}{{{keys}}}")
        self.rules.append(f".{name}{{animation:{name} {self.length:g}s linear infinite}}")

    def show(self, name: str, start: float, end: float, last: str = "0") -> None:
        """It is seen from one second to another."""
        fade = 0.12
        self.play(
            name,
            (0.0, "opacity:0"),
            (max(start - fade, 0.0), "opacity:0"),
            (start, "opacity:1"),
            (end, "opacity:1"),
            (min(end + fade, self.length), f"opacity:{last}"),
            (self.length, f"opacity:{last}"),
        )


def arrowhead(to: Point, color: str) -> str:
    """From the origin, with a head."""
    x, y = to
    length = math.hypot(x, y)
    u, v = x / length, y / length
    left, right = ((x - 11 * u + side * 6.5 * v, y - 11 * v - side * 6.5 * u) for side in (-1, 1))
    return (
        f'<path d="M0 0L{pair((x - 6 * u, y - 6 * v))}" stroke="{color}" stroke-width="4"/>'
        f'<path d="M{pair(to)}L{pair(left)}L{pair(right)}Z" fill="{color}"/>'
    )


def dot(point: Point, radius: float, color: str) -> str:
    """A dot."""
    return f'<circle cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="{radius}" fill="{color}"/>'


def letter(text: str, point: Point, color: str) -> str:
    """A letter below a point."""
    x, y = point
    return (
        f'<text x="{x:.1f}" y="{y + 38:.1f}" fill="{color}" font-size="25" font-weight="700" '
        f'text-anchor="middle">{text}</text>'
    )


def hatted(point: Point, color: str) -> str:
    """θ̂, with a hat that sits the same with every font."""
    x, y = point
    return letter("θ", point, color) + (
        f'<path d="M{x - 5:.1f} {y + 17.5:.1f}l5 -5l5 5" stroke="{color}" stroke-width="2.2"/>'
    )


def between(start: Point, end: Point, part: float) -> Point:
    """The point that lies so far from one to the other."""
    return start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])


def plus(one: Point, other: Point) -> Point:
    """Their sum."""
    return one[0] + other[0], one[1] + other[1]


def pair(point: Point, comma: str = " ") -> str:
    """Both coordinates, as SVG has them."""
    return f"{point[0]:.1f}{comma}{point[1]:.1f}"
