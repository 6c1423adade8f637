"""`weightcast doctor`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from weightcast_lab.cli.options import Data

EPILOG = (
    "Example: `weightcast doctor --data FOLDER` says whether the step is compiled, what a "
    "GPU would use, and whether the data are whole."
)


def doctor(
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say what is installed here, what would be used, and why.

    Ends with code 1 if something is slower or less than it could be.
    """
    from weightcast_lab.doctor import MARKS, examine

    findings = []
    for finding in examine(data):
        findings.append(finding)
        if not as_json:
            color = {True: "green", False: "red", None: "default"}[finding.is_good]
            mark = f"[{color}]{MARKS[finding.is_good]}[/]"
            text = f"{mark} [bold]{finding.topic}[/]: {escape(finding.text)}"
            Console().print(text, soft_wrap=True, highlight=False)
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], indent=1, ensure_ascii=False))
    if any(finding.is_good is False for finding in findings):
        raise typer.Exit(1)
