"""Draws docs/drawings/hero-*.svg: the five moves of one training step, in motion.

The points are those of `torch.optim.SGD` with momentum under `weightcast.attach`, in a bent valley
of two weights; gradients are drawn longer than they are. Without motion, where that is preferred,
the picture shows one step with all its moves. `python docs/drawings/hero.py` writes it, and a test
holds both together.
"""

from __future__ import annotations

import math
from pathlib import Path

from bend import ACROSS, AHEAD, ALONG, RADIUS, Move, walk
from film import Film, Point, arrowhead, between, dot, hatted, letter, pair, plus

BEFORE, SHOWN = 3, 3  # steps that are done when the picture begins, and that it shows
LONGER = 3.6  # than a gradient's part of the step its arrow is drawn

WIDTH, HEIGHT, SCALE, CENTER, TURN = 800, 430, 116.0, (396.0, -14.0), 0.4
CAPTIONS = (
    "copy θ",
    "look ahead: θ − 3Δ",
    "forward and backward",
    "back to θ, bit for bit",
    "step, with that gradient",
)
LASTS = (1.0, 1.7, 1.6, 1.3, 1.4)  # seconds of each move, in the first step
FASTER = 0.62  # of that, in the steps that follow
END = 1.6  # seconds of rest before it begins again

COLORS = {
    "light": {
        "paper": "#f5f7ff", "band": "#3949ab", "ink": "#1c2330", "soft": "#5b6575",
        "theta": "#283593", "ahead": "#d84315", "copy": "#5c6bc0",
    },
    "dark": {
        "paper": "#151a2b", "band": "#8c9eff", "ink": "#e8ebf0", "soft": "#9aa4b4",
        "theta": "#b3bdff", "ahead": "#ff8a65", "copy": "#7986cb",
    },
}  # fmt: skip


def place(point: Point) -> Point:
    """Where a point of the valley is on the picture."""
    x, y = point
    cos, sin = math.cos(TURN), math.sin(TURN)
    return CENTER[0] + SCALE * (x * cos - y * sin), CENTER[1] + SCALE * (x * sin + y * cos)


def arrow(move: Move) -> Point:
    """A gradient's arrow on the picture, from its root."""
    (x, y), (end_x, end_y) = place(move.theta), place(plus(move.theta, move.pull))
    return LONGER * (end_x - x), LONGER * (end_y - y)


def drawing(scheme: str) -> str:
    """The picture as SVG."""
    colors, steps = COLORS[scheme], walk()
    past = [next(steps).theta for _ in range(BEFORE)]
    moves = [next(steps) for _ in range(SHOWN)]
    pace = [1.0, *[FASTER] * (SHOWN - 1)]
    film = Film(sum(LASTS) * sum(pace) + END)
    shapes = [*_valley(colors), *_trail(past, moves[0].theta, colors)]
    before = past[-1]
    clock, captions = 0.0, [[] for _ in CAPTIONS]  # type: list[list[tuple[float, float]]]
    for number, (move, speed) in enumerate(zip(moves, pace, strict=True)):
        starts = [clock]
        for own, seconds in zip(captions, LASTS, strict=True):
            own.append((starts[-1], starts[-1] + speed * seconds))
            starts.append(own[-1][1])
        shapes += _step(number, before, move, starts, film, colors)
        before = move.theta
        clock = starts[-1]
    shapes += _walker(moves, captions, film, colors)
    shapes += _legend(captions, film, colors)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}" fill="none" stroke-linecap="round" '
            'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif" role="img">',
            "<title>One training step under weightcast: copy the weights, look ahead, forward and "
            "backward there, back, step</title>",
            "<style>@media (prefers-reduced-motion: no-preference){",
            *film.rules,
            ".still{opacity:0}",
            "}@media (prefers-reduced-motion: reduce){.moving{display:none}}</style>",
            f'<clipPath id="card"><rect width="{WIDTH}" height="{HEIGHT}" rx="18"/></clipPath>',
            '<g clip-path="url(#card)">',
            *shapes,
            "</g>",
            "</svg>\n",
        ]
    )


def _valley(colors: dict[str, str]) -> list[str]:
    """Bands of equal height, closed form: ellipses in radius and angle."""
    shapes = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{colors["paper"]}"/>']
    for level in (5.6, 4.7, 3.9, 3.15, 2.45, 1.8, 1.2, 0.65, 0.25):
        out, along = level / math.sqrt(ACROSS), level / math.sqrt(ALONG) / RADIUS
        points = []
        for n in range(72):
            turn = math.tau * n / 72
            radius, angle = max(RADIUS + out * math.cos(turn), 0.0), along * math.sin(turn)
            points.append(pair(place((radius * math.cos(angle), radius * math.sin(angle)))))
        shapes.append(
            f'<path d="M{" ".join(points)}Z" fill="{colors["band"]}" fill-opacity=".075" '
            f'stroke="{colors["band"]}" stroke-opacity=".16"/>'
        )
    x, y = place((RADIUS, 0.0))
    shapes.append(
        f'<path d="M{x - 6:.1f} {y:.1f}h12M{x:.1f} {y - 6:.1f}v12" stroke="{colors["soft"]}" '
        'stroke-width="2"/>'
        f'<text x="{x:.1f}" y="{y + 26:.1f}" fill="{colors["soft"]}" font-size="15" '
        'text-anchor="middle">minimum</text>'
    )
    return shapes


def _trail(past: list[Point], now: Point, colors: dict[str, str]) -> list[str]:
    """The steps that are done."""
    path = "L".join(pair(place(p)) for p in (*past, now))
    dots = "".join(dot(place(p), 4, colors["theta"]) for p in past)
    return [f'<path d="M{path}" stroke="{colors["theta"]}" stroke-width="2.5"/>{dots}']


def _delta(before: Point, now: Point, color: str) -> str:
    """The last update's name, beside it."""
    (x, y), (end_x, end_y) = place(before), place(now)
    away = 17 / math.dist((x, y), (end_x, end_y))
    at_x, at_y = (x + end_x) / 2 + away * (end_y - y), (y + end_y) / 2 - away * (end_x - x)
    return (
        f'<text x="{at_x:.1f}" y="{at_y + 7:.1f}" fill="{color}" font-size="21" '
        'font-weight="700" text-anchor="middle">Δ</text>'
    )


def _step(
    number: int,
    before: Point,
    move: Move,
    starts: list[float],
    film: Film,
    colors: dict[str, str],
) -> list[str]:
    """The trace that a step leaves, its copy, its look-ahead and its gradient."""
    theta, ahead, after = map(place, (move.theta, move.ahead, move.after))
    copied, looked, computed, back, stepped, end = starts
    moving = " moving" if number else ""
    names = {key: f"{key}{number}" for key in ("copy", "hops", "pull", "gone", "trace", "delta")}
    film.show(names["copy"], copied + 0.15, back + 0.8 * (stepped - back))
    film.show(names["hops"], looked + 0.3 * (computed - looked), stepped - 0.1)
    film.show(names["delta"], copied + 0.15, stepped)
    film.play(
        names["trace"],
        (0.0, "stroke-dashoffset:1"),
        (stepped + 0.35 * (end - stepped), "stroke-dashoffset:1"),
        (stepped + 0.8 * (end - stepped), "stroke-dashoffset:0"),
        (film.length, "stroke-dashoffset:0"),
    )
    x, y = arrow(move)
    grown = computed + 0.75 * (back - computed)
    film.play(
        names["pull"],
        (0.0, "transform:scale(0);opacity:0"),
        (computed + 0.3 * (back - computed), "transform:scale(0);opacity:0"),
        (computed + 0.31 * (back - computed), "transform:scale(0);opacity:1"),
        (grown, "transform:scale(1);opacity:1"),
        (stepped + 0.3 * (end - stepped), "transform:scale(1);opacity:1"),
        (stepped + 0.6 * (end - stepped), "transform:scale(1);opacity:0"),
        (film.length, "transform:scale(1);opacity:0"),
    )
    carried = f"transform:translate({theta[0] - ahead[0]:.1f}px,{theta[1] - ahead[1]:.1f}px)"
    film.play(
        names["gone"],
        (0.0, "transform:translate(0,0)"),
        (back + 0.1 * (stepped - back), "transform:translate(0,0)"),
        (back + 0.8 * (stepped - back), carried),
        (film.length, carried),
    )
    hops = [between(theta, ahead, n / AHEAD) for n in range(1, AHEAD + 1)]
    hop_marks = "".join(dot(p, 3, colors["ahead"]) for p in hops)
    color = colors["ahead"]
    shapes = [
        f'<g class="{names["delta"]}{moving}">{_delta(before, move.theta, colors["theta"])}</g>',
        f'<g class="{names["hops"]}{moving}"><path d="M{pair(theta)}L{pair(ahead)}" '
        f'stroke="{color}" stroke-width="2" stroke-dasharray="2 6"/>{hop_marks}</g>',
        f'<path class="{names["trace"]}{moving}" d="M{pair(theta)}L{pair(after)}" pathLength="1" '
        f'stroke-dasharray="1" stroke="{colors["theta"]}" stroke-width="2.5"/>',
        f'<g class="{names["copy"]}{moving}"><circle cx="{theta[0]:.1f}" cy="{theta[1]:.1f}" '
        f'r="13" stroke="{colors["copy"]}" stroke-width="2.5" stroke-dasharray="5 4"/></g>',
        f'<g class="{names["gone"]}{moving}"><g transform="translate({pair(ahead)})">'
        f'<g class="{names["pull"]}">{arrowhead((x, y), color)}</g></g></g>',
    ]
    if not number:  # without motion the gradient is seen twice: where it is taken, and applied
        shapes.append(
            f'<g class="still"><g transform="translate({pair(theta)})">'
            f"{arrowhead((x, y), color)}</g>{dot(ahead, 8, color)}{hatted(ahead, color)}"
            f"{dot(after, 5, colors['theta'])}{dot(theta, 7, colors['theta'])}"
            f"{letter('θ', theta, colors['theta'])}</g>"
        )
    return shapes


def _walker(
    moves: list[Move],
    captions: list[list[tuple[float, float]]],
    film: Film,
    colors: dict[str, str],
) -> list[str]:
    """The weights themselves, first true, then predicted, then true again."""
    here: list[tuple[float, str]] = []
    is_ahead: list[tuple[float, str]] = [(0.0, "opacity:0")]
    start = place(moves[0].theta)

    def stay(at: float, point: Point) -> None:
        here.append((at, f"transform:translate({pair(point, 'px,')}px)"))

    stay(0.0, start)
    for number, move in enumerate(moves):
        theta, ahead, after = map(place, (move.theta, move.ahead, move.after))
        (_, looks), (_, looked), (_, backs), (_, back), (_, end) = (own[number] for own in captions)
        for n in range(AHEAD + 1):  # one hop an update
            at = looks + (looked - looks) * 0.9 * n / AHEAD
            stay(at, between(theta, ahead, n / AHEAD))
            if n < AHEAD:
                stay(at + 0.12 * (looked - looks), between(theta, ahead, n / AHEAD))
        stay(backs + 0.1 * (back - backs), ahead)
        stay(backs + 0.8 * (back - backs), theta)
        stay(back + 0.35 * (end - back), theta)
        stay(back + 0.8 * (end - back), after)
        is_ahead += [
            (looks, "opacity:0"),
            (looks + 0.2, "opacity:1"),
            (backs + 0.6 * (back - backs), "opacity:1"),
            (backs + 0.8 * (back - backs), "opacity:0"),
        ]
    here.append((film.length, here[-1][1]))
    film.play("here", *here)
    film.play("shade", *is_ahead, (film.length, "opacity:0"))
    true = [(at, what.replace("y:0", "y:z").replace("y:1", "y:0").replace("y:z", "y:1"))
            for at, what in is_ahead]  # fmt: skip
    film.play("true", *true, (film.length, "opacity:1"))
    zero = (0.0, 0.0)
    traces = []
    for number, move in enumerate(moves):
        (start_at, end) = captions[-1][number]
        film.show(f"done{number}", start_at + 0.8 * (end - start_at), film.length, last="1")
        traces.append(
            f'<g class="done{number} moving">{dot(place(move.theta), 4, colors["theta"])}</g>'
        )
    return [
        *traces,
        f'<g class="here moving"><g class="true">{dot(zero, 8, colors["theta"])}'
        f"{letter('θ', zero, colors['theta'])}</g>"
        f'<g class="shade">{dot(zero, 8, colors["ahead"])}'
        f"{hatted(zero, colors['ahead'])}</g></g>",
    ]


def _legend(
    captions: list[list[tuple[float, float]]], film: Film, colors: dict[str, str]
) -> list[str]:
    """The moves by name, the one that is going on in full."""
    shapes = []
    for number, (text, own) in enumerate(zip(CAPTIONS, captions, strict=True)):
        y, frames = 56 + 36 * number, [(0.0, "opacity:.32")]
        for start, end in own:
            frames += [(start, "opacity:.32"), (start + 0.15, "opacity:1"), (end, "opacity:1")]
            frames.append((end + 0.1, "opacity:.32"))
        film.play(f"said{number}", *frames, (film.length, "opacity:.32"))
        shapes.append(
            f'<g class="said{number}"><circle cx="276" cy="{y - 7}" r="13" '
            f'fill="{colors["theta"]}"/><text x="276" y="{y - 1.5}" fill="{colors["paper"]}" '
            f'font-size="16" font-weight="700" text-anchor="middle">{number + 1}</text>'
            f'<text x="300" y="{y}" fill="{colors["ink"]}" font-size="23" font-weight="600">'
            f"{text}</text></g>"
        )
    return shapes


def main() -> None:
    """Write both."""
    for scheme in COLORS:
        path = Path(__file__).with_name(f"hero-{scheme}.svg")
        path.write_text(drawing(scheme), "utf-8")


if __name__ == "__main__":
    main()
