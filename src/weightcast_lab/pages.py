"""The pages of the documentation whose tables are made from data or computed anew.

    python -m weightcast_lab.pages [study.md ...] [--docs FOLDER]

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; all else is written by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from weightcast_lab.laws import page as laws
from weightcast_lab.report.markdown import fill_document, markdown_rows
from weightcast_lab.study import protocol as study
from weightcast_lab.tasks.networks import cifar
from weightcast_lab.trials import tables as trials


def _networks() -> dict[str, str]:
    header = ["network", "why it differs", "parameters", "published", "at a quarter of the width"]
    return {"networks": markdown_rows(header, cifar.table(), left=2)}


PAGES: Mapping[str, Callable[[], dict[str, str]]] = {
    "laws.md": laws.tables,
    "networks.md": _networks,
    "study.md": study.tables,
    "trials.md": trials.tables,
}
"""Page -> its tables in Markdown, by the names of their blocks."""


def fill(page: Path) -> None:
    """Fill in all tables of a page.

    Raises:
        LabError: it cannot be read or written, or lacks one of them.
    """
    for name, table in PAGES[page.name]().items():
        fill_document(page, name, table)


def main() -> None:
    """Fill in the pages that are named, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pages", nargs="*", default=list(PAGES), metavar="PAGE")
    parser.add_argument("--docs", type=Path, default=Path("docs"), metavar="FOLDER")
    arguments = parser.parse_args()
    for name in arguments.pages:
        fill(arguments.docs / name)


if __name__ == "__main__":
    main()
