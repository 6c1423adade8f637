"""The tables of `docs/laws.md`, computed anew."""

from __future__ import annotations

import numpy as np

from weightcast_lab.laws.network import sharpness
from weightcast_lab.laws.quadratic import (
    edge,
    least_damping,
    noise_ratio,
)
from weightcast_lab.report.markdown import markdown_rows
from weightcast_lab.report.tables import number

BETA = 0.9
AHEAD = (0.0, BETA, 1.0, 2.0, 3.0, 5.0, 8.0)
RATES = {0.0: 0.3, 1.0: 0.1, 3.0: 0.3 / 7}
"""The rates of the network's runs, by s: all have the same edge."""


def tables() -> dict[str, str]:
    """Each table in Markdown, by the name of its block."""
    return {"laws": laws_table(), "network": network_table()}


def laws_table() -> str:
    """Damping, stability and noise by s, at β = 0.9."""
    header = ["s", "Least damping", "√c", "Edge of stability, γ·h", "Noise of θ̂ over that of θ"]
    rows = [
        [
            f"{s:g}",
            number(float(least_damping(BETA, s)), 2),
            number(float(np.sqrt(s * (1 - BETA))), 2),
            number(float(edge(BETA, s)), 1),
            number(float(noise_ratio(BETA, s, 1.0)), 2),
        ]
        for s in AHEAD
    ]
    return markdown_rows(header, rows)


def network_table() -> str:
    """The edge of stability of a network by s."""
    header = ["s", "lr", "Edge", "Sharpest curvature", "Ratio"]
    rows = []
    for s, rate in RATES.items():
        found = sharpness(s, rate)
        ratio = number(found.curvature / found.edge, 2)
        curvature = number(found.curvature, 2)
        rows.append([f"{s:g}", f"{rate:.3g}", number(found.edge, 2), curvature, ratio])
    return markdown_rows(header, rows)
