"""The kinds of experiments, and the files of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType

from weightcast_lab.compare.report import report as comparison
from weightcast_lab.errors import LabError
from weightcast_lab.files import write_atomically
from weightcast_lab.foresight.report import report as foresight
from weightcast_lab.paper.report import report as reproduction
from weightcast_lab.report.blocks import Figure, Report
from weightcast_lab.report.drawing import DARK, LIGHT, to_image
from weightcast_lab.report.markdown import fill_document, markdown
from weightcast_lab.report.page import page
from weightcast_lab.report.terminal import terminal
from weightcast_lab.results.loading import Results
from weightcast_lab.study.brief import brief as study_in_brief
from weightcast_lab.study.report import report as study
from weightcast_lab.trials.report import report as trials


@dataclass(frozen=True)
class Kind:
    """A kind of experiments.

    Attributes:
        mark: A key that these experiments have.
        report: From experiments to all that there is to show of them.
        brief: The one small table that says most, if there is one.
    """

    mark: str
    report: Callable[[Sequence[Results]], Report]
    brief: Callable[[Sequence[Results]], Report] | None = None


KINDS = (
    Kind("network", reproduction),
    Kind("varied", foresight),
    Kind("trial", trials),
    Kind("variant_of", study, study_in_brief),
    Kind("title", comparison),
)
"""All kinds, in the order in which they are told apart: a comparison has a title and no more."""


def _kind(experiments: Sequence[Results]) -> Kind:
    return next(kind for kind in KINDS if kind.mark in experiments[0])


def report_of(experiments: Sequence[Results]) -> Report:
    """All that there is to show of them."""
    return _kind(experiments).report(experiments)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Draw tables, pictures and a page into the folder.

    Raises:
        LabError: they cannot be written.
    """
    written = []
    for name, content in _files(report):
        write_atomically(folder / name, content)
        written.append(folder / name)
    return written


def _files(report: Report) -> Iterator[tuple[str, bytes]]:
    yield "report.html", page(report).encode()
    name = "table.md" if report.is_one_table else "tables.md"
    yield name, markdown(report, notes=False).encode()
    for name, text in report.files.items():
        yield name, text.encode()
    for block in report.blocks:
        if isinstance(block, Figure):
            yield f"{block.key}.png", to_image(block.draw(LIGHT, 2), "png")
            for theme, name in ((LIGHT, "light"), (DARK, "dark")):  # for pages that have both
                yield f"{block.key}-{name}.svg", to_image(block.draw(theme, 2), "svg")


def terminal_report(experiments: Sequence[Results]) -> RenderableType:
    """What the command prints."""
    return terminal(report_of(experiments))


def in_markdown(experiments: Sequence[Results], *, notes: bool, brief: bool = False) -> str:
    """The tables in Markdown, with what one must know to read them if wanted.

    Raises:
        LabError: one brief table is wanted of something else than a study.
    """
    kind = _kind(experiments)
    if not brief:
        return markdown(kind.report(experiments), notes=notes)
    if kind.brief is None:
        raise LabError("--brief is for a study: all others are brief as they are.")
    return markdown(kind.brief(experiments))


def in_latex(experiments: Sequence[Results]) -> str:
    """The tables of a reproduction in LaTeX.

    Raises:
        LabError: it is something else.
    """
    latex = report_of(experiments).latex
    if not latex:
        raise LabError("--latex is for a reproduction: all others have --markdown.")
    return latex


def insert(
    document: Path, name: str, experiments: Sequence[Results], *, brief: bool = False
) -> None:
    """Fill the document's block of that name.

    Raises:
        LabError: the document cannot be read or written, or has no such block.
    """
    fill_document(document, name, in_markdown(experiments, notes=True, brief=brief))
