"""The command line: a file a command."""

from __future__ import annotations

import errno
import sys
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from weightcast_lab.cli.app import app
from weightcast_lab.errors import LabError


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a mistake of the user's is one sentence on stderr and exit code 2."""
    try:
        app(arguments)
    except LabError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ENOSPC):
            raise
        where = str(error.filename or "The output")
        _refuse(f"{where[:60]}{'…' * (len(where) > 60)}: {error.strerror}.")


def _refuse(sentence: str) -> NoReturn:
    Console(stderr=True).print(f"[red]Error:[/] {escape(sentence)}", soft_wrap=True)
    sys.exit(2)
