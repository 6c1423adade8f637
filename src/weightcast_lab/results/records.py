"""Finished runs on disk: `FOLDER/runs.jsonl`, one line a run.

Lines are only ever appended, by one process at a time. Of several lines of one run the last counts.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightcast_lab.errors import LabError
from weightcast_lab.files import Warn, cannot_be_written, sync_folder

if TYPE_CHECKING:
    pass

RUNS = "runs.jsonl"


@dataclass(frozen=True)
class RunRecord:
    """What a run came to. The defaults are those of runs from before there was such a thing.

    Attributes:
        configuration: A hash of everything that the numbers depend on but method and seed.
        method: The key of its method.
        seed: Fixes initial weights, batches and dropout.
        history: A list per column: `step`, `train_loss`, `validation_loss`, `metric`, `seconds`,
            and `foresight` where the recipe asks for it; a row per evaluation.
        environments: All on which parts of it were computed.
        diverged_at: The step at which it did, if it did.
        test: What was measured at the end, by name.
        readings: Losses at the end by where they are read; see `readings.read`.
        weights: A hash of the final weights: equal if and only if two runs ended alike.
        memory: Of the method; see `Method.memory`.
        cpu_seconds: Of the processes that computed it.
        processor: That of the last of them.
        package: The package that the optimizer comes from, with its version, if it is not torch.
    """

    configuration: str
    method: str
    seed: int
    history: dict[str, list[Any]]
    environments: list[dict[str, str]] = field(default_factory=list)
    diverged_at: int | None = None
    test: dict[str, float] = field(default_factory=dict)
    readings: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: str = ""
    memory: float | None = None
    cpu_seconds: float | None = None
    processor: str | None = None
    package: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be used: it may come from a file."""
        texts = isinstance(self.configuration, str) and isinstance(self.method, str)
        columns = isinstance(self.history, dict) and "step" in self.history
        if not (texts and columns and type(self.seed) is int):
            raise ValueError("no run")

    @classmethod
    def from_line(cls, line: bytes) -> RunRecord:
        """Read a line of the file; fields that this version does not know are left out.

        Raises:
            ValueError: it is no run.
        """
        try:
            found = json.loads(line)
            return cls(**{name: found[name] for name in _FIELDS if name in found})
        except (TypeError, RecursionError):
            raise ValueError("no run") from None

    def to_line(self) -> bytes:
        """The line of the file, with its end."""
        return json_line(asdict(self))


_FIELDS = [field.name for field in fields(RunRecord)]


def json_line(value: dict[str, Any]) -> bytes:
    """JSON in one line: all digits of every number, and no blanks."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def append_lines(path: Path, *lines: bytes) -> None:
    """Append lines that end with a line break, and return when they are safe on disk.

    A kill may leave a piece of the last line: no reader takes it for a run, and the next call
    removes it. After a full disk the file is as it was.

    Raises:
        LabError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("ab+", buffering=0) as file:
            beginning = _mend_the_end(file)
            size = file.seek(0, os.SEEK_END)
            try:
                _write(file, beginning + b"".join(lines))
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(size)
                raise
        if is_new:
            sync_folder(path.parent)
    except OSError as error:
        raise cannot_be_written(path, error) from None


def _mend_the_end(file: FileIO) -> bytes:
    """Remove a piece of a line, if there is one; what must come before the next line."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read() in (b"", b"\n"):
        return b""
    file.seek(0)
    last = file.read().rpartition(b"\n")[2]
    try:
        RunRecord.from_line(last)
    except ValueError:
        file.truncate(size - len(last))
        return b""
    return b"\n"  # only the line break was lost


def _write(file: FileIO, content: bytes) -> None:
    """Write all of it: the system may take less at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def read_runs(path: Path, warn: Warn) -> list[RunRecord]:
    """All runs in the file, line by line; damaged lines are left out, with a warning each.

    Raises:
        LabError: it cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}.") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                found.append(RunRecord.from_line(line))
        except ValueError:
            warn(f"{path}, line {number}, is damaged: its run counts as missing. Delete that line.")
    return found
