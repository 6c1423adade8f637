"""Draws docs/drawings/gains-*.svg: who gains, and who does not, in one figure.

`python docs/drawings/gains.py` writes it from the committed results; a test holds both together.
"""

from __future__ import annotations

import math
import runpy
from pathlib import Path

QUOTED = runpy.run_path(str(Path(__file__).parents[1] / "quoted.py"))

ROWS = (  # heading, then what is compared, as docs/quoted.py names it
    (
        "Three steps ahead, warm-up and cosine",
        (
            ("AdamW against AdamW, six tasks", "trials/adamw/adamw-s3/mean"),
            ("AdamW against NAdamW, six tasks", "trials/nadamw/adamw-s3/mean"),
            ("Muon against Muon-Nesterov, one task", "trials/muon/muon-s3/long-cosine"),
        ),
    ),
    (
        "Gradients eight steps late, three tasks",
        (
            ("AdamW, eight steps ahead", "delay/delay-adamw-8/adamw-s1D/-digits-d8"),
            (
                "NAdamW with β₁ = 0.99, four steps ahead",
                "delay/delay-on-nadamw-8/nadamw-b0.99-s0.5D/-digits-d8",
            ),
        ),
    ),
    (
        "Five small tasks, against the plain optimizer",
        (
            ("RAdam, three steps ahead", "study/radam/radam-s3/-digits"),
            ("RMSprop, which has no momentum, three ahead", "study/rmsprop/rmsprop-s3/-digits"),
            ("AdamW, one step back, as a control", "study/control/adamw-s-1/-digits"),
        ),
    ),
)
COLORS = {
    "light": {
        "paper": "#ffffff",
        "ink": "#1c2330", "soft": "#5b6575", "line": "#dfe3ea", "": "#5b6575",
        "better": "#0b7a4b", "worse": "#b42318",
    },
    "dark": {
        "paper": "#181d26",
        "ink": "#e8ebf0", "soft": "#9aa4b4", "line": "#3a4356", "": "#9aa4b4",
        "better": "#4ccb8f", "worse": "#ff8a7a",
    },
}  # fmt: skip
WIDTH, LEFT, RIGHT = 580, 20, 160
LOWEST, HIGHEST = -13.5, 8.0
MARKS = (-10, -5, 0, 5)
ROW, HEADING, TOP = 44, 40, 8


def drawing(scheme: str) -> str:
    """The figure as SVG."""
    colors = COLORS[scheme]
    shapes, y = [], TOP
    for heading, rows in ROWS:
        y += HEADING
        shapes.append(_text(LEFT, y - 12, heading, colors["ink"], 'font-weight="700"'))
        for label, what in rows:
            shapes += _row(y, label, what, colors)
            y += ROW
    for mark in MARKS:
        text = f"{mark:+d} %".replace("-", "−").replace("+0", "0")
        more = 'text-anchor="middle" font-size="13"'
        shapes.append(_text(_x(mark), y + 14, text, colors["soft"], more))
    below = _text(LEFT, y + 39, "Change of the final loss, with its 95 % interval; lower is better",
                  colors["soft"], 'font-size="13"')  # fmt: skip
    height = y + 50
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" fill="none" font-size="15" '
            'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" role="img">',
            "<title>Change of the final loss by a forecast, with its interval</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="{colors["paper"]}" rx="12"/>',
            *shapes,
            below,
            "</svg>\n",
        ]
    )


def _row(y: int, label: str, what: str, colors: dict[str, str]) -> list[str]:
    """A comparison: its name, its interval, and both in figures."""
    effect = QUOTED["effect"](*what.split("/"))
    width = effect.change.half_width
    middle, low, high = (100 * math.expm1(effect.change.mean + part * width) for part in (0, -1, 1))
    color, at = colors[effect.verdict], y + 27
    figures = f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")
    grid = "".join(
        f'<path d="M{_x(mark):.1f} {y + 18}v18" stroke="{colors["line" if mark else "soft"]}"/>'
        for mark in MARKS
    )
    return [
        grid,
        _text(LEFT, y + 13, label, colors["soft"], 'font-size="14"'),
        f'<path d="M{_x(low):.1f} {at}H{_x(high):.1f}" stroke="{color}" stroke-width="3" '
        'stroke-linecap="round"/>'
        f'<circle cx="{_x(middle):.1f}" cy="{at}" r="5.5" fill="{color}"/>',
        _text(WIDTH - LEFT, at + 5, figures, color, 'text-anchor="end" font-weight="600"'),
    ]


def _x(percent: float) -> float:
    return LEFT + (percent - LOWEST) / (HIGHEST - LOWEST) * (WIDTH - LEFT - RIGHT)


def _text(x: float, y: float, text: str, color: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" {more}>{text}</text>'


def main() -> None:
    """Write both."""
    for scheme in COLORS:
        Path(__file__).with_name(f"gains-{scheme}.svg").write_text(drawing(scheme), "utf-8")


if __name__ == "__main__":
    main()
