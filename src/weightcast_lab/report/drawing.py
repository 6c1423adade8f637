"""Pictures: learning curves and paired differences of comparisons, reproductions and studies."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from weightcast_lab.results.loading import Results, StoredRun
from weightcast_lab.results.measures import finished
from weightcast_lab.results.statistics import mean_interval


@dataclass(frozen=True)
class Theme:
    """Colours of a picture; the page it stands on has the same."""

    ink: str
    soft: str
    line: str
    paper: str
    shades: tuple[float, float]
    """The part of a colour map that can be told from the paper."""
    baselines: tuple[str, ...]
    better: str
    worse: str


LIGHT = Theme(
    *("#1c2330", "#5b6575", "#dfe3ea", "#ffffff"),
    shades=(0.42, 0.95),
    baselines=("#d95f02", "#b1338a"),
    better="#0b7a4b",
    worse="#b42318",
)
DARK = Theme(
    *("#e8ebf0", "#9aa4b4", "#303846", "#181d26"),
    shades=(0.82, 0.42),
    baselines=("#ff9f4a", "#f07fc8"),
    better="#4ccb8f",
    worse="#ff8a7a",
)
FAMILIES = ("Blues", "Greens", "Purples")

Array = npt.NDArray[np.float64]
Style = dict[str, Any]


def draw_panels(
    labelled: Sequence[tuple[str, Results]],
    column: str,
    theme: Theme,
    columns: int,
    *,
    by_epoch: bool = True,
) -> Figure:
    """Validation `column` against epochs, or else steps: a panel for each labelled experiment."""
    figure, panels = panels_of(len(labelled), columns, theme)
    with matplotlib.rc_context(figure_settings(theme)):
        for panel, (label, experiment) in zip(panels, labelled, strict=True):
            styles = styles_of(experiment, theme)
            draw_curves(panel, experiment, styles, column, by_epoch=by_epoch)
            metric = experiment["metric"]["name"] if column == "metric" else "loss"
            x = "epochs" if by_epoch else "optimizer steps"
            panel.set(title=label, xlabel=x, ylabel=f"validation {metric}")
            if by_epoch:
                panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            else:
                panel.xaxis.set_major_locator(MaxNLocator(5))
                use_log_scale_if_wide(panel)
        add_legend(figure, panels, 3 * min(columns, len(labelled)))
    return figure


def panels_of(
    count: int, columns: int, theme: Theme, height: float = 4.0
) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels in so many columns at most."""
    width, columns = 5.6 * columns, min(columns, count)
    lines = -(-count // columns)
    with matplotlib.rc_context(figure_settings(theme)):
        layout = ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08, hspace=0.04)
        figure = Figure(figsize=(width, height * lines + 0.5), layout=layout)
        panels = list(figure.subplots(lines, columns, squeeze=False).flat)
        for panel in panels[count:]:
            panel.remove()
    return figure, panels[:count]


def add_legend(figure: Figure, panels: Sequence[Axes], columns: int) -> None:
    """One for all panels, each label once."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside upper center",
            ncols=min(len(handles), columns),
        )


def to_image(figure: Figure, form: str) -> bytes:
    """The figure as PNG or SVG, the same bytes every time."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "weightcast", "svg.fonttype": "none"}):
        figure.savefig(
            buffer, format=form, dpi=160, metadata={"Date": None} if form == "svg" else None
        )
    return buffer.getvalue()


def in_the_dark(svg: bytes) -> bytes:
    """A picture that was drawn in the light theme, in the colours of the dark one."""
    colors = _dark_colors()
    return re.sub(rb"#[0-9a-f]{6}", lambda found: colors.get(found[0], found[0]), svg)


@cache
def _dark_colors() -> dict[bytes, bytes]:
    """The dark theme's colours by the light theme's."""
    names = ("ink", "soft", "line", "paper", "better", "worse")
    pairs = [(getattr(LIGHT, name), getattr(DARK, name)) for name in names]
    pairs += zip(LIGHT.baselines, DARK.baselines, strict=True)
    for family in FAMILIES:
        shades = (matplotlib.colormaps[family](np.linspace(*t.shades, 500)) for t in (LIGHT, DARK))
        pairs += ((to_hex(a), to_hex(b)) for a, b in zip(*shades, strict=True))
    return {light.encode(): dark.encode() for light, dark in pairs}


def column_of(runs: Iterable[StoredRun], name: str) -> Array:
    """A column of the histories, of shape (runs, evaluations).

    The evaluation before training is left out: on its scale the rest would be flat.
    """
    return np.array([run["history"][name][1:] for run in runs])


def _band(values: Array) -> tuple[Array, Array]:
    """Mean and half width of the 95% interval at every evaluation."""
    intervals = [mean_interval(list(column)) for column in values.T]
    means = [interval.mean for interval in intervals if interval]
    widths = [interval.half_width or 0.0 for interval in intervals if interval]
    return np.array(means), np.array(widths)


def draw_line(
    panel: Axes,
    steps: Array,
    values: Array,
    style: Style,
    label: str,
    scale: Callable[[Array], Array] = lambda value: value,
) -> None:
    """Mean and 95% band over the seeds, both then brought to the panel's scale."""
    means, widths = _band(values)
    panel.plot(steps, scale(means), label=label, **style)
    if len(values) > 1:
        panel.fill_between(
            steps,
            scale(means - widths),
            scale(means + widths),
            color=style["color"],
            alpha=0.11,
            linewidth=0,
        )


def use_log_scale_if_wide(panel: Axes) -> None:
    """Scale logarithmically where the highest value is over three times the lowest."""
    low, high = panel.get_ylim()
    if low > 0 and high / low > 3:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())


def fit_to_lines(panel: Axes) -> None:
    """Scale to the means with some room; a wide band may leave the panel."""
    values = np.concatenate([[], *(np.asarray(line.get_ydata(), float) for line in panel.lines)])
    values = values[~np.isnan(values)]
    if values.size and np.ptp(values) > 0:
        room = 0.12 * np.ptp(values)
        low, high = values.min() - room, values.max() + room
        panel.set_ylim(max(low, 0.8 * values.min()) if values.min() > 0 else low, high)


def draw_curves(
    panel: Axes,
    results: Results,
    styles: dict[str, Style],
    column: str,
    *,
    by_epoch: bool = False,
) -> None:
    """Validation `column` of every method against steps, or else epochs."""
    for method in results["methods"]:
        if runs := finished(results, method["key"]).values():
            steps = column_of(runs, "step")[0]
            draw_line(
                panel,
                np.arange(1.0, len(steps) + 1) if by_epoch else steps,
                column_of(runs, column),
                styles[method["key"]],
                method["label"],
            )
    fit_to_lines(panel)


def styles_of(results: Results, theme: Theme) -> dict[str, Style]:
    """The reference in ink, predictions of one optimizer in shades of a colour, others dashed."""
    common = {"linewidth": 1.9, "marker": "o", "markersize": 2.6}
    optimizers = list(dict.fromkeys(method["optimizer"] for method in results["methods"]))
    styles: dict[str, Style] = {}
    plain = 0
    for position, method in enumerate(results["methods"]):
        if method["steps"] is None:
            color = theme.ink if position == 0 else theme.baselines[plain % len(theme.baselines)]
            plain += position > 0
            styles[method["key"]] = common | {
                "color": color,
                "linestyle": "-" if position == 0 else (0, (4, 1.6)),
            }
        else:
            family = [
                other["key"]
                for other in results["methods"]
                if other["optimizer"] == method["optimizer"] and other["steps"] is not None
            ]
            colors = matplotlib.colormaps[
                FAMILIES[optimizers.index(method["optimizer"]) % len(FAMILIES)]
            ]
            shade = np.linspace(*theme.shades, len(family))[family.index(method["key"])]
            styles[method["key"]] = common | {"color": colors(float(shade))}
    return styles


def figure_settings(theme: Theme) -> Any:
    """Matplotlib's parameters (which it types by their names): quiet axes, room to breathe."""
    return {
        "text.parse_math": False,  # a $ in the name of a metric is no formula
        "font.family": "sans-serif",
        "font.size": 10.5,
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.soft,
        "axes.titlecolor": theme.ink,
        "axes.facecolor": theme.paper,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.line,
        "grid.linewidth": 0.7,
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "xtick.color": theme.soft,
        "ytick.color": theme.soft,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "text.color": theme.ink,
        "legend.frameon": False,
    }
