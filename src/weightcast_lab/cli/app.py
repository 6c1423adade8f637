"""The command `weightcast` and its commands.

torch takes seconds to import: the commands import what needs it when they run, so that --help is
instant.
"""

from __future__ import annotations

from typing import Annotated

import typer

from weightcast_lab.cli import compare, doctor, foresight, report, reproduce, study

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Measure what forecasting the weights does for an optimizer.",
    epilog="Exit codes: 0, done, or stopped in time by --minutes; 1, some runs failed, or doctor "
    "found something; 2, a mistake in the command, its data or its folder; 130, interrupted. "
    "Results go to stdout, all else to stderr; NO_COLOR=1 takes the colors away.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"weightcast {version('weightcast')}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Measure what forecasting the weights does for an optimizer."""


for _run, _epilog in (
    (compare.compare, compare.EPILOG),
    (reproduce.reproduce, reproduce.EPILOG),
    (study.study, study.EPILOG),
    (foresight.foresight, foresight.EPILOG),
    (doctor.doctor, doctor.EPILOG),
    (report.report, report.EPILOG),
):
    app.command(epilog=_epilog)(_run)
