"""A report as one HTML page that needs nothing else: pictures inside, no scripts."""

from __future__ import annotations

import base64
from importlib.resources import files

from jinja2 import Environment

from weightcast_lab.report.blocks import Figure, Place, Report
from weightcast_lab.report.drawing import LIGHT, in_the_dark, to_image


def page(report: Report) -> str:
    """The whole page: light and dark, wide and narrow."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["addresses"] = _addresses
    template = environment.from_string(files(__package__).joinpath("page.html").read_text("utf-8"))
    return template.render(
        report=report,
        blocks=[(type(block).__name__, block) for block in report.shown_in(Place.PAGE)],
    )


def _addresses(figure: Figure, columns: int) -> tuple[str, str]:
    """The figure itself as addresses of images, light and dark."""
    light = to_image(figure.draw(LIGHT, columns), "svg")
    return _address(light), _address(in_the_dark(light))


def _address(image: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(image).decode()
