"""One self-contained page: pictures inside, no scripts, light and dark, wide and narrow."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from matplotlib.figure import Figure

from weightcast_lab.report.drawing import DARK, LIGHT, Theme, to_image
from weightcast_lab.report.tables import Cell, shown
from weightcast_lab.results.loading import Results


def facts_of(experiments: Sequence[Results], what: str) -> list[str]:
    """How many runs, on which machines."""
    hardware = dict.fromkeys(e["hardware"] for x in experiments for e in x["environments"])
    return [f"{sum(len(e['runs']) for e in experiments)} {what}", *hardware]


def configurations_of(experiments: Sequence[Results], name: str) -> dict[str, str]:
    """Each experiment's configuration in a line, by its name."""
    return {
        e[name]: ", ".join(f"{key} {shown(value)}" for key, value in e["configuration"].items())
        for e in experiments
    }


def sheet_of_paper(
    *,
    kicker: str,
    title: str,
    facts: Iterable[str],
    body: str,
    notes: Iterable[str],
    command: str,
    configuration: Mapping[str, Any],
) -> str:
    """The page around its `body`, which is HTML; all else is text."""
    return Template(files(__package__).joinpath("page.html").read_text("utf-8")).substitute(
        kicker=html.escape(kicker),
        title=html.escape(title),
        facts=" · ".join(map(html.escape, facts)),
        body=body,
        notes="".join(f"<li>{html.escape(note)}</li>" for note in notes),
        command=html.escape(command),
        configuration="".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in configuration.items()
        ),
    )


def picture(description: str, draw_figure: Callable[[Theme, int], Figure]) -> str:
    """A figure in one and in two columns, light and dark; the browser takes one."""

    def address(theme: Theme, columns: int) -> str:
        image = to_image(draw_figure(theme, columns), "svg")
        return "data:image/svg+xml;base64," + base64.b64encode(image).decode()

    narrow, dark = "(max-width: 700px)", "(prefers-color-scheme: dark)"
    return (
        f'<picture><source media="{narrow} and {dark}" srcset="{address(DARK, 1)}">'
        f'<source media="{narrow}" srcset="{address(LIGHT, 1)}">'
        f'<source media="{dark}" srcset="{address(DARK, 2)}">'
        f'<img alt="{html.escape(description)}" src="{address(LIGHT, 2)}"></picture>'
    )


def html_table(columns: Iterable[str], rows: Iterable[Sequence[Cell]]) -> str:
    """It scrolls inside where it is too wide; a cell is its text and its class, if it has one."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = ""
    for (label, _), *cells in rows:
        body += f"<tr><th>{html.escape(label)}</th>"
        for text, kind in cells:
            body += f'<td class="{kind}">{html.escape(text).replace(" ±", "&nbsp;±")}</td>'
        body += "</tr>"
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def section(title: str, content: str) -> str:
    """A heading with a table or a picture below it."""
    return f'<h2>{html.escape(title)}</h2><div class="sheet">{content}</div>'


def verdict_cards(found: Iterable[tuple[str, str, str]]) -> str:
    """A card for each question or claim, with its verdict, and why."""
    cards = "".join(
        f'<div class="card"><h3>{html.escape(question)}</h3>'
        f'<p class="verdict">{html.escape(verdict)}</p><p>{html.escape(reason)}</p></div>'
        for question, verdict, reason in found
    )
    return f'<div class="cards">{cards}</div>'
