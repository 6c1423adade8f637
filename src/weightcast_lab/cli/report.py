"""`weightcast report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from weightcast_lab.errors import LabError

PIPE_WIDTH = 160


EPILOG = "Example: `weightcast report weightcast-runs/digits --markdown > table.md`"


def report(
    results: Annotated[
        Path,
        typer.Argument(help="A folder of results, or its results.json.", show_default=False),
    ],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the Markdown table and nothing else.")
    ] = False,
    latex: Annotated[
        bool, typer.Option("--latex", help="Print a reproduction's tables in LaTeX, nothing else.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print results.json and nothing else.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Put the Markdown table and its notes into this document, between the lines "
            "`<!-- begin RESULTS -->` and `<!-- end RESULTS -->`, and do nothing else.",
            show_default=False,
        ),
    ] = None,
    brief: Annotated[
        bool,
        typer.Option("--brief", help="Of a study: one small table, for --markdown or --into."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the files.", show_default="beside the results"),
    ] = None,
) -> None:
    """Draw tables, pictures and page again from stored results."""
    from weightcast_lab.kinds import in_latex, in_markdown, insert
    from weightcast_lab.results.loading import load_results

    if sum((markdown, latex, as_json, into is not None)) > 1:
        raise LabError("--markdown, --latex, --json and --into exclude one another: give one.")
    path = results / "results.json" if results.is_dir() else results
    experiments = load_results(path)
    if brief and not (markdown or into):
        raise LabError("--brief shapes --markdown and --into: give one of them as well.")
    if markdown:
        typer.echo(in_markdown(experiments, notes=False, brief=brief), nl=False)
    elif latex:
        typer.echo(in_latex(experiments), nl=False)
    elif as_json:
        typer.echo(path.read_text("utf-8"), nl=False)
    elif into:
        insert(into, results.as_posix(), experiments, brief=brief)
    else:
        show(path, out or path.parent)


def show(path: Path, folder: Path, as_json: bool = False) -> None:
    """Draw everything into the folder, and print the tables of a results file, or the file."""
    from weightcast_lab.kinds import report_of, write_report
    from weightcast_lab.report.terminal import terminal
    from weightcast_lab.results.loading import load_results

    report = report_of(load_results(path))
    files = write_report(report, folder)
    if as_json:
        typer.echo(path.read_text("utf-8"), nl=False)
        return
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(terminal(report))
    for file in files:
        console.print(escape(str(file)), style="dim", soft_wrap=True)
