"""The picture of a comparison: learning curves and paired differences."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from weightcast_lab.compare.summary import Row
from weightcast_lab.report.drawing import (
    Style,
    Theme,
    add_legend,
    column_of,
    draw_curves,
    draw_line,
    figure_settings,
    fit_to_lines,
    styles_of,
    use_log_scale_if_wide,
)
from weightcast_lab.results.loading import Results
from weightcast_lab.results.measures import pairs


def draw(results: Results, rows: Sequence[Row], theme: Theme, columns: int) -> Figure:
    """Four panels in one or two columns, with a common legend."""
    lines = 4 // columns
    size = (11.5, 8.2) if columns == 2 else (5.2, 16.5)
    with matplotlib.rc_context(figure_settings(theme)):
        layout = ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08, hspace=0.04)
        figure = Figure(figsize=size, layout=layout)
        panels = list(figure.subplots(lines, columns).flat)
        styles = styles_of(results, theme)
        draw_curves(panels[0], results, styles, "validation_loss")
        panels[0].set(title="Validation loss")
        use_log_scale_if_wide(panels[0])
        metric = results["metric"]["name"]
        draw_curves(panels[1], results, styles, "metric")
        panels[1].set(title=f"Validation {metric}")
        _draw_relative(panels[2], results, styles)
        _draw_differences(panels[3], rows, styles)
        for panel in panels[:3]:
            panel.set_xlabel("optimizer steps")
        add_legend(figure, panels[:1], 3 * columns)
    return figure


def _draw_relative(panel: Axes, results: Results, styles: dict[str, Style]) -> None:
    """How far above or below the reference's loss of the same seed and step; in % if it can be."""
    reference = results["methods"][0]
    compared = []
    for method in results["methods"]:
        if both := pairs(results, method["key"], reference["key"]):
            own, base = (column_of(runs, "validation_loss") for runs in zip(*both, strict=True))
            compared.append((method, column_of([both[0][0]], "step")[0], own, base))
    if all((own > 0).all() and (base > 0).all() for *_, own, base in compared):
        panel.set(title=f"Loss relative to {reference['label']} (paired)")
        panel.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+.0f} %" if value else "0 %")
        )
        for method, steps, own, base in compared:
            style, label = styles[method["key"]], method["label"]
            draw_line(panel, steps, np.log(own / base), style, label, lambda x: 100 * np.expm1(x))
    else:  # of a task whose loss is not a positive number
        panel.set(title=f"Loss minus {reference['label']}'s (paired)")
        for method, steps, own, base in compared:
            draw_line(panel, steps, own - base, styles[method["key"]], method["label"])
    fit_to_lines(panel)


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
