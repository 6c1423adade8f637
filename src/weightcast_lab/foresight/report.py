"""How a forecast of the last step compares with what came: tables and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawn
from matplotlib.ticker import NullFormatter, NullLocator

from weightcast.displacement.reach import damped_steps
from weightcast_lab.report.blocks import Figure, Report, Table, plain
from weightcast_lab.report.drawing import Array, Theme, add_legend, figure_settings, panels_of
from weightcast_lab.report.tables import NOTHING, configurations_of, facts_of, number
from weightcast_lab.results.loading import Results
from weightcast_lab.results.measures import computed_on, finished
from weightcast_lab.running.foresight import QUANTITIES

DEFAULT_BETA1 = 0.9


@dataclass(frozen=True)
class ForesightSummary:
    """What was found of a method in a setting.

    `values` holds by quantity an array of shape (seeds, epochs, horizons).
    """

    experiment: Results
    label: str
    method: str
    horizons: tuple[int, ...]
    values: dict[str, Array]

    def mean(self, quantity: str) -> Array:
        """Over seeds and epochs: one value a horizon."""
        with np.errstate(invalid="ignore"):
            mean: Array = self.values[quantity].mean(axis=(0, 1))
        return mean


def summaries(experiments: Sequence[Results]) -> list[ForesightSummary]:
    """All that was measured, setting by setting."""
    found = []
    for experiment in experiments:
        for method in experiment["methods"]:
            runs = list(finished(experiment, method["key"]).values())
            if not runs:
                continue
            rows = [run["history"]["foresight"][1:] for run in runs]  # none before training
            values = {
                quantity: np.array([[row[quantity] for row in run] for run in rows], dtype=float)
                for quantity in QUANTITIES
            }
            label = experiment["workload"]
            if experiment["varied"]:
                label += f", {_name(experiment['varied'])} {experiment['value']:g}"
            horizons = tuple(experiment["configuration"]["horizons"])
            found.append(ForesightSummary(experiment, label, method["label"], horizons, values))
    return found


def _name(varied: str) -> str:
    return "β₁" if varied == "beta1" else varied


TABLES = {
    "cosine": "Cosine of the last update and what the next s steps did",
    "multiple": "How many updates lead closest to the weights s steps later",
    "error": "Error of s updates, relative to what the s steps did (1: no better than staying)",
    "decaying error": "Error of β₁ + … + β₁ˢ updates (`damped`), likewise",
}


def _table(found: Sequence[ForesightSummary], quantity: str, title: str) -> Table:
    rows = [
        [
            summary.label,
            summary.method,
            *(NOTHING if np.isnan(v) else number(float(v), 2) for v in summary.mean(quantity)),
        ]
        for summary in found
    ]
    horizons = (f"s = {s}" for summary in found[:1] for s in summary.horizons)
    return Table(title, ["Setting", "Method", *horizons], plain(rows), left=2)


def notes_of(experiments: Sequence[Results]) -> list[str]:
    """What a reader must know to judge the numbers."""
    seeds = max(len(e["seeds"]) for e in experiments)
    missing = sum(
        len(e["methods"]) * len(e["seeds"]) - sum(r["diverged_at"] is None for r in e["runs"])
        for e in experiments
    )
    notes = [
        "The last update is that of the optimizer's last step, weight decay included; some two "
        "dozen forecasts an epoch, means over all epochs "
        f"and {seeds} seed{'s' if seeds > 1 else ''}. Learning rates are the usual ones of the "
        "workloads, as in the study's protocol, unless the setting names another.",
        "A method with s is measured along its own training, in which gradients come from "
        "predicted weights.",
        computed_on(experiments),
    ]
    if missing:
        notes.append(f"Runs that are missing or diverged, and are not in the numbers: {missing}.")
    return notes


def report(experiments: Sequence[Results]) -> Report:
    """All that there is to show: one table a quantity, and a figure."""
    found = summaries(experiments)
    title = "How far the last step sees"
    return Report(
        command="foresight",
        title=title,
        facts=facts_of(experiments, "runs"),
        blocks=[
            *(_table(found, quantity, title) for quantity, title in TABLES.items()),
            Figure("foresight", title, partial(draw, found)),
        ],
        notes=notes_of(experiments),
        repeat=experiments[0]["command"],
        configuration=configurations_of(experiments, "key"),
    )


# --- the figure ----------------------------------------------------------------------------------


def draw(found: Sequence[ForesightSummary], theme: Theme, columns: int) -> Drawn:
    """The workloads as they are, then what changes with β₁, learning rate and batch size."""
    plain = [s for s in found if not s.experiment["varied"] and s.method == "AdamW"]
    bases = {s.experiment["base"]: s for s in plain}
    varied = dict.fromkeys(
        (s.experiment["base"], s.experiment["varied"])
        for s in found
        if s.experiment["varied"] and s.experiment["base"] in bases
    )
    figure, panels = panels_of(4 + len(varied), columns, theme)
    with matplotlib.rc_context(figure_settings(theme)):
        for panel, quantity, title in zip(
            panels,
            ("cosine", "multiple", "error"),
            ("Direction", "Best multiple of the last update", "Error of s updates"),
            strict=False,
        ):
            _draw_lines(panel, [(s.label, s) for s in plain], quantity, "tab10")
            panel.set(title=title, ylabel=_LABELS[quantity])
        _draw_perfect(panels[1], plain[0].horizons if plain else [], [DEFAULT_BETA1], theme)
        panels[2].axhline(1, color=theme.ink, linewidth=1.0, linestyle="--")
        _draw_training(panels[3], plain)
        for panel, (base, what) in zip(panels[4:], varied, strict=True):
            usual = bases[base]
            others = [
                s for s in found if (s.experiment["base"], s.experiment["varied"]) == (base, what)
            ]
            values = {s.experiment["value"]: s for s in others} | {_usual(usual, what): usual}
            lines = [(f"{_name(what)} {value:g}", values[value]) for value in sorted(values)]
            _draw_lines(panel, lines, "multiple", "viridis")
            beta1s = sorted(values) if what == "beta1" else [_usual(usual, "beta1")]
            _draw_perfect(panel, usual.horizons, beta1s, theme)
            panel.set(title=f"{usual.label}: {_name(what)}", ylabel=_LABELS["multiple"])
            panel.legend(fontsize=8.5)
        add_legend(figure, panels[:4], 3)
    return figure


_LABELS = {
    "cosine": "cosine of Δ and the next s steps",
    "multiple": "multiple of Δ",
    "error": "error, relative to the s steps",
}


def _usual(summary: ForesightSummary, varied: str) -> float:
    configuration = summary.experiment["configuration"]
    if varied == "beta1":
        betas = configuration["betas"]
        return DEFAULT_BETA1 if betas is None else float(betas[0])
    return float(configuration[varied])


def _draw_lines(
    panel: Axes, lines: Sequence[tuple[str, ForesightSummary]], quantity: str, colors: str
) -> None:
    palette = matplotlib.colormaps[colors]
    for place, (label, summary) in enumerate(lines):
        color = palette(place if colors == "tab10" else 0.9 * place / max(1, len(lines) - 1))
        panel.plot(summary.horizons, summary.mean(quantity), color=color, marker="o", label=label)
    panel.set_xscale("log", base=2)
    horizons = lines[0][1].horizons if lines else ()
    panel.set_xticks(horizons, [str(s) for s in horizons])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("s, steps ahead")


def _draw_perfect(
    panel: Axes, horizons: Sequence[int], beta1s: Sequence[float], theme: Theme
) -> None:
    """What forecasts of s updates, and decaying ones with these β₁, would be right for."""
    s = np.array(horizons, dtype=float)
    top = panel.get_ylim()[1]
    panel.plot(s, s, color=theme.soft, linestyle="--", linewidth=1.2, label="s")
    for beta1 in beta1s:
        label = None if beta1 != DEFAULT_BETA1 or len(beta1s) > 1 else "β₁ + … + β₁ˢ"
        reach = [damped_steps(horizon, {"momentum": beta1}) for horizon in horizons]
        panel.plot(s, reach, color=theme.soft, linestyle=":", linewidth=1.4, label=label)
    panel.set_ylim(top=min(max(1.25 * top, 2.0), 16.5))


def _draw_training(panel: Axes, plain: Sequence[ForesightSummary]) -> None:
    """The cosine three steps ahead, from the first epoch to the last."""
    palette = matplotlib.colormaps["tab10"]
    for place, summary in enumerate(plain):
        curve = summary.values["cosine"][:, :, summary.horizons.index(3)].mean(axis=0)
        shares = (np.arange(len(curve)) + 0.5) / len(curve)
        panel.plot(shares, curve, color=palette(place), marker="o", label=summary.label)
    panel.set(title="Over training, s = 3", xlabel="share of training", ylabel=_LABELS["cosine"])
