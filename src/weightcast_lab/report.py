"""All files of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType

from weightcast_lab import foresight_report, paper_tables, study_tables
from weightcast_lab.errors import LabError
from weightcast_lab.figures import LIGHT, draw, draw_panels, to_image
from weightcast_lab.page import html_page, paper_page, study_figures, study_page
from weightcast_lab.paper import comparisons, figures
from weightcast_lab.results import Results, summarize
from weightcast_lab.store import write_atomically
from weightcast_lab.tables import csv_table, fill_document, markdown_report, markdown_table
from weightcast_lab.tables import terminal_report as comparison_in_terminal


def is_reproduction(experiments: Sequence[Results]) -> bool:
    """Whether these are the paper's experiments."""
    return "network" in experiments[0]


def is_study(experiments: Sequence[Results]) -> bool:
    """Whether these are the workloads of a study."""
    return "variant_of" in experiments[0]


def is_foresight(experiments: Sequence[Results]) -> bool:
    """Whether these compare forecasts with what came."""
    return "varied" in experiments[0]


def write_report(experiments: Sequence[Results], folder: Path) -> list[Path]:
    """Draw tables, pictures and a page into the folder.

    Raises:
        LabError: they cannot be written.
    """
    if is_reproduction(experiments):
        contents = _reproduction(experiments)
    elif is_foresight(experiments):
        contents = _foresight(experiments)
    elif is_study(experiments):
        contents = _study(experiments)
    else:
        contents = _comparison(experiments[0])
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def terminal_report(experiments: Sequence[Results]) -> RenderableType:
    """What the command prints."""
    if is_reproduction(experiments):
        return paper_tables.terminal(experiments)
    if is_foresight(experiments):
        return foresight_report.terminal(experiments)
    if is_study(experiments):
        return study_tables.terminal(experiments)
    return comparison_in_terminal(summarize(experiments[0]))


def in_markdown(experiments: Sequence[Results], *, notes: bool, brief: bool = False) -> str:
    """The tables in Markdown, with what one must know to read them if wanted.

    Raises:
        LabError: one brief table is wanted of something else than a study.
    """
    if brief:
        if not is_study(experiments):
            raise LabError("--brief is for a study: all others are brief as they are.")
        return study_tables.brief(experiments)
    if is_reproduction(experiments):
        return paper_tables.markdown(experiments)
    if is_foresight(experiments):
        return foresight_report.markdown(experiments)
    if is_study(experiments):
        return study_tables.markdown(experiments)
    summary = summarize(experiments[0])
    return markdown_report(summary) if notes else markdown_table(summary)


def in_latex(experiments: Sequence[Results]) -> str:
    """The tables of a reproduction in LaTeX.

    Raises:
        LabError: it is something else.
    """
    if not is_reproduction(experiments):
        raise LabError("--latex is for a reproduction: all others have --markdown.")
    return "\n".join(map(paper_tables.latex, comparisons(experiments)))


def insert(
    document: Path, name: str, experiments: Sequence[Results], *, brief: bool = False
) -> None:
    """Fill the document's block of that name.

    Raises:
        LabError: the document cannot be read or written, or has no such block.
    """
    fill_document(document, name, in_markdown(experiments, notes=True, brief=brief))


def _comparison(results: Results) -> dict[str, bytes]:
    summary = summarize(results)
    return {
        "report.html": html_page(results, summary).encode(),
        "curves.png": to_image(draw(results, summary.rows, LIGHT, columns=2), "png"),
        "table.md": markdown_table(summary).encode(),
        "table.csv": csv_table(summary).encode(),
    }


def _reproduction(experiments: Sequence[Results]) -> dict[str, bytes]:
    contents = {"report.html": paper_page(experiments).encode()}
    contents["tables.md"] = paper_tables.markdown(experiments).encode()
    for table in comparisons(experiments):
        contents[f"{table.key}.tex"] = paper_tables.latex(table).encode()
        contents[f"{table.key}.csv"] = paper_tables.csv_text(table).encode()
    for figure in figures(experiments):
        for form in ("png", "svg"):
            drawn = draw_panels(figure.experiments, figure.column, LIGHT, columns=2)
            contents[f"{figure.key}.{form}"] = to_image(drawn, form)
    return contents


def _study(experiments: Sequence[Results]) -> dict[str, bytes]:
    contents = {
        "report.html": study_page(experiments).encode(),
        "tables.md": study_tables.markdown(experiments).encode(),
        "table.csv": study_tables.csv_text(experiments).encode(),
    }
    for figure in study_figures(experiments):
        contents[f"{figure.key}.png"] = to_image(figure.draw(LIGHT, 2), "png")
    return contents


def _foresight(experiments: Sequence[Results]) -> dict[str, bytes]:
    drawn = foresight_report.draw(experiments, LIGHT, 2)
    return {
        "foresight.png": to_image(drawn, "png"),
        "tables.md": foresight_report.markdown(experiments).encode(),
    }
