"""Results of before there was `runs.jsonl`, when every run had a file of its own.

    python -m weightcast_lab.convert_runs FOLDER [FOLDER ...] [--delete]

In the folders and all below, each `runs/METHOD/seed-N/result.json` becomes a line of the
`runs.jsonl` beside `runs`. What is there already stays and is not repeated, so that it can be done
again after more runs have been made. With `--delete` the files go once their lines are safe.

To be removed when the last results of that form have been converted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from weightcast_lab.errors import LabError
from weightcast_lab.results.records import RUNS, RunRecord, append_lines, json_line
from weightcast_lab.running.folders import OLD_FORM, computing_in


def convert(folder: Path, *, delete: bool = False) -> tuple[int, int]:
    """Convert everything in the folder and below.

    Returns:
        How many files there were, and how many lines were added.

    Raises:
        LabError: a file is damaged or in the wrong place, or something cannot be written.
    """
    groups = defaultdict(list)
    for path in sorted(folder.rglob(OLD_FORM)):
        groups[path.parents[3]].append(path)
    added = 0
    with computing_in(folder):
        for place, paths in groups.items():
            added += _convert_one(place / RUNS, paths)
            if delete:
                _delete(paths)
    return sum(map(len, groups.values())), added


def _convert_one(target: Path, paths: Iterable[Path]) -> int:
    there = _last_lines(target)
    lines = []
    for path in paths:
        try:
            found = json.loads(path.read_bytes())
            record = RunRecord.from_line(json_line(found))
        except ValueError:
            raise LabError(f"{path} is damaged: delete it, to compute its run again.") from None
        if (record.method, f"seed-{record.seed}") != path.parts[-3:-1]:
            raise LabError(f"{path} is of another run: {record.method}, seed {record.seed}.")
        if there.get((record.method, record.seed)) != found:
            lines.append(json_line(found))
    if lines:
        append_lines(target, *lines)
    there = _last_lines(target)
    for path in paths:
        found = json.loads(path.read_bytes())
        if there[found["method"], found["seed"]] != found:
            raise LabError(f"{path} is not in {target} as it was: this is an error of weightcast.")
    return len(lines)


def _last_lines(target: Path) -> dict[tuple[str, int], Any]:
    """Every run's whole content, unknown fields and all."""
    found = {}
    content = target.read_bytes() if target.exists() else b""
    for line in content.split(b"\n"):
        with suppress(ValueError):
            record = RunRecord.from_line(line)
            found[record.method, record.seed] = json.loads(line)
    return found


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()
        for folder in path.parents[:3]:  # seed-N, METHOD, runs
            with suppress(OSError):  # a checkpoint or another run is in it
                folder.rmdir()


def main() -> None:
    """Convert the folders that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--delete", action="store_true", help="delete what has been converted")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        try:
            files, added = convert(folder, delete=arguments.delete)
        except LabError as error:
            sys.exit(f"Error: {error}")
        print(f"{folder}: {files} files, {added} lines added")


if __name__ == "__main__":
    main()
