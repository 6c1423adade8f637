"""A report as one HTML page that needs nothing else: pictures inside, no scripts."""

from __future__ import annotations

import base64
from importlib.resources import files

from jinja2 import Environment

from weightcast_lab.report.blocks import Figure, Place, Report
from weightcast_lab.report.drawing import DARK, LIGHT, Theme, to_image


def page(report: Report) -> str:
    """The whole page: light and dark, wide and narrow."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["address"] = _address
    template = environment.from_string(files(__package__).joinpath("page.html").read_text("utf-8"))
    return template.render(
        report=report,
        blocks=[(type(block).__name__, block) for block in report.shown_in(Place.PAGE)],
        LIGHT=LIGHT,
        DARK=DARK,
    )


def _address(figure: Figure, theme: Theme, columns: int) -> str:
    """The figure itself, as the address of an image."""
    image = to_image(figure.draw(theme, columns), "svg")
    return "data:image/svg+xml;base64," + base64.b64encode(image).decode()
