"""All files of a report."""

from __future__ import annotations

from pathlib import Path

from weightcast_lab.figures import LIGHT, draw, to_image
from weightcast_lab.page import html_page
from weightcast_lab.results import Results, summarize
from weightcast_lab.store import write_atomically
from weightcast_lab.tables import csv_table, markdown_table


def write_report(results: Results, folder: Path) -> list[Path]:
    """Draw `curves.png`, `report.html`, `table.md` and `table.csv` into the folder.

    Raises:
        LabError: they cannot be written.
    """
    summary = summarize(results)
    contents = {
        "report.html": html_page(results, summary).encode(),
        "curves.png": to_image(draw(results, summary.rows, LIGHT, columns=2), "png"),
        "table.md": markdown_table(summary).encode(),
        "table.csv": csv_table(summary).encode(),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]
