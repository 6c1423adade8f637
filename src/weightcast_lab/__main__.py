"""The command `weightcast`, also as `python -m weightcast_lab`.

With torch alone there are `--version` and `doctor`; all else needs the extra `lab`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

LAB = (
    *("filelock", "jinja2", "matplotlib", "numpy", "PIL", "pooch", "rich", "scipy", "sklearn"),
    *("torchvision", "typer"),
)
"""What the extra `lab` installs, by the names to import."""


def main() -> None:
    """Run the command, or what of it is possible here. Ctrl-C ends it with code 130."""
    try:
        try:
            from weightcast_lab.cli import main as command

            command()
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in LAB:
                raise
            _without_the_laboratory(sys.argv[1:], str(error.name))
    except KeyboardInterrupt:
        sys.exit(130)


def _without_the_laboratory(words: Sequence[str], missing: str) -> None:
    name = words[0] if words else "--help"
    if name == "--version":
        from weightcast import __version__

        print(f"weightcast {__version__}")
    elif name == "doctor":
        _doctor(words[1:])
    else:
        print(
            f"Error: weightcast {name} needs the laboratory, and {missing} is not installed: "
            "pip install 'weightcast[lab]'. Without it there are --version and doctor.",
            file=sys.stderr,
        )
        sys.exit(2)


def _doctor(words: Sequence[str]) -> None:
    from weightcast_lab.doctor import MARKS, examine

    parser = argparse.ArgumentParser("weightcast doctor")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(words)
    findings = list(examine(arguments.data))
    if arguments.json:
        print(json.dumps([vars(finding) for finding in findings], indent=1, ensure_ascii=False))
    else:
        for finding in findings:
            print(f"{MARKS[finding.is_good]} {finding.topic}: {finding.text}")
    sys.exit(any(finding.is_good is False for finding in findings))


if __name__ == "__main__":
    main()
