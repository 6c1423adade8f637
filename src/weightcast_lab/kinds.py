"""All files of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import RenderableType

from weightcast_lab.compare.figure import draw
from weightcast_lab.compare.page import html_page
from weightcast_lab.compare.summary import summarize
from weightcast_lab.compare.tables import csv_table, markdown_report, markdown_table
from weightcast_lab.compare.tables import terminal_report as comparison_in_terminal
from weightcast_lab.errors import LabError
from weightcast_lab.files import write_atomically
from weightcast_lab.foresight import report as foresight_report
from weightcast_lab.paper import tables as paper_tables
from weightcast_lab.paper.comparison import comparisons, figures
from weightcast_lab.paper.page import paper_page
from weightcast_lab.report.drawing import LIGHT, draw_panels, light_and_dark, to_image
from weightcast_lab.report.tables import fill_document
from weightcast_lab.results.loading import Results
from weightcast_lab.study import tables as study_tables
from weightcast_lab.study.brief import brief
from weightcast_lab.study.figures import study_figures
from weightcast_lab.study.page import study_page
from weightcast_lab.trials import report as trials_report


@dataclass(frozen=True)
class Kind:
    """How experiments of one kind are shown.

    `mark` is a key that these experiments have; `markdown` the tables with what one must know to
    read them, and `table` without it where that is wanted; `files` a report's, by name.
    """

    mark: str
    terminal: Callable[[Sequence[Results]], RenderableType]
    markdown: Callable[[Sequence[Results]], str]
    files: Callable[[Sequence[Results]], dict[str, bytes]]
    table: Callable[[Sequence[Results]], str] | None = None
    brief: Callable[[Sequence[Results]], str] | None = None
    latex: Callable[[Sequence[Results]], str] | None = None


def write_report(experiments: Sequence[Results], folder: Path) -> list[Path]:
    """Draw tables, pictures and a page into the folder.

    Raises:
        LabError: they cannot be written.
    """
    contents = _kind(experiments).files(experiments)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def terminal_report(experiments: Sequence[Results]) -> RenderableType:
    """What the command prints."""
    return _kind(experiments).terminal(experiments)


def in_markdown(experiments: Sequence[Results], *, notes: bool, brief: bool = False) -> str:
    """The tables in Markdown, with what one must know to read them if wanted.

    Raises:
        LabError: one brief table is wanted of something else than a study.
    """
    kind = _kind(experiments)
    if not brief:
        return (kind.markdown if notes or kind.table is None else kind.table)(experiments)
    if kind.brief is None:
        raise LabError("--brief is for a study: all others are brief as they are.")
    return kind.brief(experiments)


def in_latex(experiments: Sequence[Results]) -> str:
    """The tables of a reproduction in LaTeX.

    Raises:
        LabError: it is something else.
    """
    latex = _kind(experiments).latex
    if latex is None:
        raise LabError("--latex is for a reproduction: all others have --markdown.")
    return latex(experiments)


def insert(
    document: Path, name: str, experiments: Sequence[Results], *, brief: bool = False
) -> None:
    """Fill the document's block of that name.

    Raises:
        LabError: the document cannot be read or written, or has no such block.
    """
    fill_document(document, name, in_markdown(experiments, notes=True, brief=brief))


def _comparison_files(experiments: Sequence[Results]) -> dict[str, bytes]:
    results = experiments[0]
    summary = summarize(results)
    return {
        "report.html": html_page(results, summary).encode(),
        "curves.png": to_image(draw(results, summary.rows, LIGHT, columns=2), "png"),
        **light_and_dark("curves", partial(draw, results, summary.rows)),
        "table.md": markdown_table(summary).encode(),
        "table.csv": csv_table(summary).encode(),
    }


def _reproduction_files(experiments: Sequence[Results]) -> dict[str, bytes]:
    contents = {"report.html": paper_page(experiments).encode()}
    contents["tables.md"] = paper_tables.markdown(experiments).encode()
    for table in comparisons(experiments):
        contents[f"{table.key}.tex"] = paper_tables.latex(table).encode()
        contents[f"{table.key}.csv"] = paper_tables.csv_text(table).encode()
    for figure in figures(experiments):
        drawing = partial(draw_panels, figure.labelled, figure.column)
        contents[f"{figure.key}.png"] = to_image(drawing(LIGHT, 2), "png")
        contents |= light_and_dark(figure.key, drawing)
    return contents


def _study_files(experiments: Sequence[Results]) -> dict[str, bytes]:
    contents = {
        "report.html": study_page(experiments).encode(),
        "tables.md": study_tables.markdown(experiments).encode(),
        "table.csv": study_tables.csv_text(experiments).encode(),
    }
    for figure in study_figures(experiments):
        contents |= light_and_dark(figure.key, figure.draw)
    return contents


def _foresight_files(experiments: Sequence[Results]) -> dict[str, bytes]:
    return {
        **light_and_dark("foresight", partial(foresight_report.draw, experiments)),
        "tables.md": foresight_report.markdown(experiments).encode(),
    }


KINDS = (
    Kind(
        "network",
        paper_tables.terminal,
        paper_tables.markdown,
        _reproduction_files,
        latex=lambda experiments: "\n".join(map(paper_tables.latex, comparisons(experiments))),
    ),
    Kind(
        "varied",
        foresight_report.terminal,
        foresight_report.markdown,
        _foresight_files,
    ),
    Kind("trial", trials_report.terminal, trials_report.markdown, trials_report.files),
    Kind(
        "variant_of",
        study_tables.terminal,
        study_tables.markdown,
        _study_files,
        brief=brief,
    ),
    Kind(
        "title",
        lambda experiments: comparison_in_terminal(summarize(experiments[0])),
        lambda experiments: markdown_report(summarize(experiments[0])),
        _comparison_files,
        table=lambda experiments: markdown_table(summarize(experiments[0])),
    ),
)
"""In the order in which they are told apart: all have a title, and a comparison has no more."""


def _kind(experiments: Sequence[Results]) -> Kind:
    return next(kind for kind in KINDS if kind.mark in experiments[0])
