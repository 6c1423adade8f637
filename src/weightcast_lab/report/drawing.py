"""Pictures: learning curves and paired differences of comparisons, reproductions and studies."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from weightcast_lab.methods.optimizers import Method
from weightcast_lab.paper.protocol import RECIPES
from weightcast_lab.results.loading import Results, Row, Run, finished, pairs
from weightcast_lab.results.statistics import Interval, mean_interval
from weightcast_lab.study.answers import Answer, Effect, heaviest
from weightcast_lab.study.pairs import final_losses, series_of
from weightcast_lab.study.studies import METHODS


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


def draw(results: Results, rows: Sequence[Row], theme: Theme, columns: int) -> Figure:
    """Four panels in one or two columns, with a common legend."""
    lines = 4 // columns
    size = (11.5, 8.2) if columns == 2 else (5.2, 16.5)
    with matplotlib.rc_context(figure_settings(theme)):
        layout = ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08, hspace=0.04)
        figure = Figure(figsize=size, layout=layout)
        panels = list(figure.subplots(lines, columns).flat)
        styles = _styles(results, theme)
        _draw_curves(panels[0], results, styles, "validation_loss")
        panels[0].set(title="Validation loss")
        _use_log_scale_if_wide(panels[0])
        metric = results["metric"]["name"]
        _draw_curves(panels[1], results, styles, "metric")
        panels[1].set(title=f"Validation {metric}")
        _draw_relative(panels[2], results, styles)
        _draw_differences(panels[3], rows, styles)
        for panel in panels[:3]:
            panel.set_xlabel("optimizer steps")
        add_legend(figure, panels[:1], 3 * columns)
    return figure


def draw_panels(
    experiments: Sequence[Results],
    column: str,
    theme: Theme,
    columns: int,
    *,
    by_epoch: bool = True,
) -> Figure:
    """Validation `column` against epochs, or else steps, one panel an experiment."""
    figure, panels = panels_of(len(experiments), columns, theme)
    with matplotlib.rc_context(figure_settings(theme)):
        for panel, experiment in zip(panels, experiments, strict=True):
            styles = _styles(experiment, theme)
            _draw_curves(panel, experiment, styles, column, by_epoch=by_epoch)
            metric = experiment["metric"]["name"] if column == "metric" else "loss"
            is_paper = "network" in experiment
            label = RECIPES[experiment["network"]].label if is_paper else experiment["workload"]
            x = "epochs" if by_epoch else "optimizer steps"
            panel.set(title=label, xlabel=x, ylabel=f"validation {metric}")
            if by_epoch:
                panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            else:
                panel.xaxis.set_major_locator(MaxNLocator(5))
                _use_log_scale_if_wide(panel)
        add_legend(figure, panels, 3 * min(columns, len(experiments)))
    return figure


def draw_forest(
    found: Sequence[Answer], against: str, left_out: str | None, theme: Theme, columns: int
) -> Figure:
    """Each method's change of the final loss with its interval: a panel a workload, then means.

    The means are over all workloads, and without the task that is `left_out`. The rows are those of
    all the answers. Filled is what is better or worse after correction.
    """
    workloads = list(dict.fromkeys(w for answer in found for w in answer.workloads))
    mean, without = "Mean over the workloads", "Mean without {}".format
    titles = [
        *workloads,
        *([mean] if len(workloads) > 1 else []),
        *([without(left_out)] if left_out is not None else []),
    ]
    rows = [
        (
            row.label,
            dict(zip(answer.workloads, row.effects, strict=True))
            | {mean: row.overall}
            | {without(task): rest for task, rest in zip(answer.tasks, row.without, strict=True)},
        )
        for answer in found
        for row in answer.begun
    ]
    figure, panels = panels_of(len(titles), columns, theme, 0.3 * len(rows) + 1.4)
    tones = {"better": theme.better, "worse": theme.worse, "": theme.soft}
    with matplotlib.rc_context(figure_settings(theme)):
        for panel, title in zip(panels, titles, strict=True):
            panel.set_title(title)
            panel.axvline(0, color=theme.ink, linewidth=1.2)
            for place, (_, effects) in enumerate(rows):
                effect = effects.get(title)
                if effect is None or effect.change is None:
                    continue
                middle, low, high = _in_percent(effect.change)
                panel.errorbar(
                    middle,
                    place,
                    xerr=[[middle - low], [high - middle]],
                    color=tones[effect.verdict],
                    marker="o",
                    markersize=6.5,
                    markeredgewidth=1.6,
                    markerfacecolor=tones[effect.verdict] if effect.verdict else theme.paper,
                    linewidth=1.8,
                    capsize=3,
                )
            panel.set_yticks(range(len(rows)), [label for label, _ in rows])
            panel.set_ylim(len(rows) - 0.4, -0.6)
            panel.grid(visible=False, axis="y")
            panel.xaxis.set_major_locator(MaxNLocator(5))
        figure.supxlabel(
            f"final loss, % change to {against} (paired, 95% interval)\nfilled: better or worse "
            "after Holm's correction over the table",
            fontsize=9.5,
            color=theme.soft,
        )
    return figure


def draw_ahead(found: Sequence[Answer], theme: Theme, columns: int) -> Figure:
    """How the final loss depends on how far ahead is predicted: each workload, and their mean."""
    about = {answer.question.key: answer for answer in found}
    workloads, tasks = about["adamw"].workloads, about["adamw"].tasks
    rows = [row for row in about["adamw"].begun if not METHODS[row.name].decaying]
    steps = [0.0, *(METHODS[row.name].steps or 0.0 for row in rows)]

    def line(effects: Sequence[Effect]) -> Array:
        changes = [effect.change for effect in effects]
        nothing = (np.nan, np.nan, np.nan)
        return np.array(
            [(0.0, 0.0, 0.0), *(nothing if c is None else _in_percent(c) for c in changes)]
        )

    figure, (panel,) = panels_of(1, columns, theme, 4.6)
    with matplotlib.rc_context(figure_settings(theme)):
        panel.axhline(0, color=theme.ink, linewidth=1.0)
        colors = matplotlib.colormaps["tab10"]
        for number, workload in enumerate(workloads):
            values = line([row.effects[number] for row in rows])[:, 0]
            style: Style = {"marker": "o", "markersize": 3.0, "linewidth": 1.4}
            panel.plot(steps, values, color=colors(number), label=workload, **style)
        if len(workloads) > 1:
            mean = line([row.overall for row in rows])
            panel.fill_between(steps, mean[:, 1], mean[:, 2], color=theme.ink, alpha=0.12)
            panel.plot(steps, mean[:, 0], color=theme.ink, linewidth=3, label="mean, 95% interval")
        left_out = heaviest(found).get(tasks)
        if left_out is not None:
            rest = line([row.without[tasks.index(left_out)] for row in rows])
            label, style = f"mean without {left_out}", {"linewidth": 3.0, "linestyle": ":"}
            panel.fill_between(steps, rest[:, 1], rest[:, 2], color=theme.ink, alpha=0.12)
            panel.plot(steps, rest[:, 0], color=theme.ink, label=label, **style)
        if "look-ahead" in about:
            nadamw = about["look-ahead"].rows[0]
            levels = [(nadamw.overall.change, "NAdamW, mean", "--")]
            if left_out is not None and about["look-ahead"].tasks == tasks:
                change = nadamw.without[tasks.index(left_out)].change
                levels.append((change, f"NAdamW, mean without {left_out}", ":"))
            for change, label, dashes in levels:
                if change is not None:
                    level, color = _in_percent(change)[0], theme.baselines[0]
                    panel.axhline(level, label=label, color=color, linestyle=dashes)
        panel.set(
            title="How far ahead?",
            xlabel="s, the steps predicted ahead",
            ylabel="final loss, % change to AdamW",
        )
        panel.set_xticks(steps, [f"{s:g}" for s in steps])
        add_legend(figure, [panel], 2)
    return figure


def draw_rates(experiments: Sequence[Results], theme: Theme, columns: int) -> Figure:
    """Final loss against the learning rate in the search: is a forecast but a larger step?"""
    figure, panels = panels_of(len(experiments), columns, theme)
    with matplotlib.rc_context(figure_settings(theme)):
        for panel, experiment in zip(panels, experiments, strict=True):
            styles = _styles(experiment, theme)
            for method in experiment["methods"]:
                points = [
                    (entry["learning rate"], float(np.mean(entry["final loss"])))
                    for entry in experiment["search"]["tried"]
                    if entry["name"] == method["name"] and None not in entry["final loss"]
                ]
                if points:
                    rates, losses = zip(*sorted(points), strict=True)
                    panel.plot(rates, losses, label=method["label"], **styles[method["key"]])
            panel.set(
                title=experiment["workload"], xlabel="learning rate", ylabel="final validation loss"
            )
            panel.set_xscale("log")
            panel.xaxis.set_minor_formatter(NullFormatter())
            _use_log_scale_if_wide(panel)
        add_legend(figure, panels, 3 * min(columns, len(experiments)))
    return figure


def draw_delays(
    experiments: Sequence[Results], names: Sequence[str], theme: Theme, columns: int
) -> Figure:
    """The final loss against the delay of the gradients: a panel a series, one line a method.

    Without delay a forecast is its plain form. A method that diverged at a delay has a gap there.
    """
    series = list(dict.fromkeys(map(series_of, experiments)))
    figure, panels = panels_of(len(series), columns, theme)
    methods = [METHODS[name] for name in names]
    styles = _delay_styles(methods, theme)
    with matplotlib.rc_context(figure_settings(theme)):
        for panel, title in zip(panels, series, strict=True):
            own = {e["delay"]: e for e in experiments if series_of(e) == title}
            delays, places = sorted(own), np.arange(len(own))
            for method in methods:
                ends = [
                    final_losses(own[delay], (method if delay else method.plain).name)
                    for delay in delays
                ]
                intervals = [mean_interval(losses) for losses in ends]
                if any(i for i, delay in zip(intervals, delays, strict=True) if delay):
                    means = np.array([i.mean if i else np.nan for i in intervals])
                    widths = np.array([(i.half_width or 0.0) if i else 0.0 for i in intervals])
                    style = styles[method.name]
                    panel.plot(places, means, label=method.label, **style)
                    low, high, color = means - widths, means + widths, style["color"]
                    panel.fill_between(places, low, high, color=color, alpha=0.11, linewidth=0)
            panel.set_xticks(places, [f"{delay}" for delay in delays])
            panel.set(title=title, xlabel="D, steps", ylabel="final validation loss")
            _fit_to_lines(panel)
            _use_log_scale_if_wide(panel)
        add_legend(figure, panels, 2 * min(columns, len(series)))
    return figure


def _delay_styles(methods: Sequence[Method], theme: Theme) -> dict[str, Style]:
    """Plain in ink, forecasts in a colour of their own kind, heavy momentum dashed."""
    kinds = {m: replace(m, beta1=None).name for m in methods}
    plain = dict.fromkeys(kinds[m] for m in methods if m.steps is None)
    ahead = dict.fromkeys(kinds[m] for m in methods if m.steps is not None)
    shade = sum(theme.shades) / 2
    colors: dict[str, Any] = dict(zip(plain, (theme.ink, *theme.baselines), strict=False))
    colors |= {k: matplotlib.colormaps[f](shade) for k, f in zip(ahead, FAMILIES, strict=False)}
    return {
        m.name: {
            "color": colors[kinds[m]],
            "linestyle": "-" if m.beta1 is None else (0, (4, 1.6)),
            "linewidth": 1.8,
            "marker": "o",
            "markersize": 3.2,
        }
        for m in methods
    }


def _in_percent(change: Interval) -> tuple[float, float, float]:
    """Mean and ends of a change of a logarithm, in per cent."""
    width = change.half_width or 0.0
    middle, low, high = (100 * float(np.expm1(change.mean + sign * width)) for sign in (0, -1, 1))
    return middle, low, high


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


def _column(runs: Iterable[Run], name: str) -> Array:
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


def _line(
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


def _use_log_scale_if_wide(panel: Axes) -> None:
    low, high = panel.get_ylim()
    if low > 0 and high / low > 3:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())


def _fit_to_lines(panel: Axes) -> None:
    """Scale to the means with some room; a wide band may leave the panel."""
    values = np.concatenate([[], *(np.asarray(line.get_ydata(), float) for line in panel.lines)])
    values = values[~np.isnan(values)]
    if values.size and np.ptp(values) > 0:
        room = 0.12 * np.ptp(values)
        low, high = values.min() - room, values.max() + room
        panel.set_ylim(max(low, 0.8 * values.min()) if values.min() > 0 else low, high)


def _draw_curves(
    panel: Axes,
    results: Results,
    styles: dict[str, Style],
    column: str,
    *,
    by_epoch: bool = False,
) -> None:
    for method in results["methods"]:
        if runs := finished(results, method["key"]).values():
            steps = _column(runs, "step")[0]
            _line(
                panel,
                np.arange(1.0, len(steps) + 1) if by_epoch else steps,
                _column(runs, column),
                styles[method["key"]],
                method["label"],
            )
    _fit_to_lines(panel)


def _draw_relative(panel: Axes, results: Results, styles: dict[str, Style]) -> None:
    """How far above or below the reference's loss of the same seed and step; in % if it can be."""
    reference = results["methods"][0]
    compared = []
    for method in results["methods"]:
        if both := pairs(results, method["key"], reference["key"]):
            own, base = (_column(runs, "validation_loss") for runs in zip(*both, strict=True))
            compared.append((method, _column([both[0][0]], "step")[0], own, base))
    if all((own > 0).all() and (base > 0).all() for *_, own, base in compared):
        panel.set(title=f"Loss relative to {reference['label']} (paired)")
        panel.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+.0f} %" if value else "0 %")
        )
        for method, steps, own, base in compared:
            style, label = styles[method["key"]], method["label"]
            _line(panel, steps, np.log(own / base), style, label, lambda x: 100 * np.expm1(x))
    else:  # of a task whose loss is not a positive number
        panel.set(title=f"Loss minus {reference['label']}'s (paired)")
        for method, steps, own, base in compared:
            _line(panel, steps, own - base, styles[method["key"]], method["label"])
    _fit_to_lines(panel)


def _draw_differences(panel: Axes, rows: Sequence[Row], styles: dict[str, Style]) -> None:
    """Paired differences of the final loss, one line each."""
    panel.set(title=f"Final loss, paired difference to {rows[0].label}")
    panel.axvline(0, color=styles[rows[0].key]["color"], linewidth=1.2)
    shown = rows[1:]
    for height, row in enumerate(shown):
        if (difference := row.differences["final loss"]) is not None:
            panel.errorbar(
                difference.mean,
                height,
                xerr=difference.half_width,
                color=styles[row.key]["color"],
                marker="o",
                markersize=8,
                markeredgewidth=2,
                markerfacecolor=None if difference.excludes_zero else panel.get_facecolor(),
                linewidth=2.2,
                capsize=4,
            )
    panel.set_yticks(range(len(shown)), [row.label for row in shown])
    panel.set_ylim(len(shown) - 0.4, -0.6)
    panel.grid(visible=False, axis="y")
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.set_xlabel(
        f"← lower than {rows[0].label} · higher →\nfilled: the 95% interval excludes zero"
    )


def _styles(results: Results, theme: Theme) -> dict[str, Style]:
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
    """Matplotlib's settings (which it types by their names): quiet axes, room to breathe."""
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
