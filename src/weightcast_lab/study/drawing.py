"""The figures of a study, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from weightcast_lab.methods.method import Method
from weightcast_lab.report.drawing import (
    FAMILIES,
    Array,
    Style,
    Theme,
    add_legend,
    figure_settings,
    fit_to_lines,
    panels_of,
    styles_of,
    use_log_scale_if_wide,
)
from weightcast_lab.results.loading import Results
from weightcast_lab.results.statistics import Interval, mean_interval
from weightcast_lab.study.answers import Answer, Effect, heaviest
from weightcast_lab.study.pairs import final_losses, series_of
from weightcast_lab.study.questions import METHODS


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
            styles = styles_of(experiment, theme)
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
            use_log_scale_if_wide(panel)
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
            fit_to_lines(panel)
            use_log_scale_if_wide(panel)
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
