"""Runs on disk. Every file appears whole or not at all.

FOLDER/config.json                        what all runs of the folder have in common
FOLDER/runs/adamw-s3/seed-0/result.json   a finished run
FOLDER/runs/adamw-s3/seed-0/checkpoint    an unfinished one
FOLDER/results.json                       all that a report needs, in one small file
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightcast_lab.errors import LabError

FORMAT = 2
"""Of everything that is written: raised when an older version could not read it."""

Warn = Callable[[str], None]


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that a crash, a full disk or a signal leaves the old one or the new one.

    Raises:
        LabError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise LabError(
            f"{path} cannot be written ({error.strerror}): make room or choose another --out; what "
            "is finished is kept, and the same command continues from there."
        ) from None


def to_json(value: Any) -> bytes:
    """Indented JSON with lists of numbers on one line, so that people can read it."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    # behind the bracket of a list there is a line break, which in a string would be escaped
    numbers = re.compile(r"\[\n[^\[\]{}\"]*\]")
    text = numbers.sub(lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)
    return text.encode() + b"\n"


def digest_of(configuration: dict[str, Any]) -> str:
    """A short hash that differs if the configuration differs."""
    text = json.dumps(configuration, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_folder(folder: Path, configuration: dict[str, Any]) -> None:
    """Make the folder, or make sure that it holds results of the same configuration.

    Raises:
        LabError: it holds results of another one, or cannot be used.
    """
    path = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        raise LabError(f"{folder} is a file: choose another --out.")
    try:
        earlier = json.loads(path.read_bytes())
        if not isinstance(earlier, dict):
            raise ValueError
    except FileNotFoundError:
        if (folder / "runs").exists():
            raise LabError(
                f"{folder} has runs but no config.json, so nobody knows what they are: choose "
                "another --out."
            ) from None
        write_atomically(path, to_json({"format": FORMAT} | configuration))
        return
    except OSError as error:
        raise LabError(f"{path} cannot be read ({error.strerror}): choose another --out.") from None
    except ValueError:
        raise LabError(f"{path} is damaged: choose another --out, or delete {folder}.") from None
    if (made := earlier.pop("format", None)) != FORMAT:
        is_newer = isinstance(made, int) and made > FORMAT
        raise LabError(
            f"{folder} was made by {'a newer' if is_newer else 'an older'} version of weightcast: "
            f"{'upgrade it, or ' if is_newer else ''}choose another --out."
        )
    differences = [
        f"{name} {earlier.get(name)!r} (now {configuration.get(name)!r})"
        for name in dict.fromkeys([*configuration, *earlier])
        if earlier.get(name) != configuration.get(name)
    ]
    if differences:
        raise LabError(
            f"{folder} holds results of another configuration: {', '.join(differences)}. Choose "
            "another --out, or repeat the earlier settings."
        )


_OTHER = "has another configuration, or your file has changed"


@dataclass(frozen=True)
class RunFiles:
    """The files of one run. Damaged ones count as missing, with a warning."""

    folder: Path
    configuration: str

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint."""
        return (self.folder / "checkpoint").exists()

    def load_result(self, warn: Warn) -> dict[str, Any] | None:
        """The result of the run, if it is finished."""
        path, problem = self.folder / "result.json", "is damaged"
        try:
            result = json.loads(path.read_bytes())
            if "step" in result["history"]:
                if result["configuration"] == self.configuration:
                    return dict(result)
                problem = _OTHER
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError):
            pass
        warn(f"{path} {problem}: this run is computed again.")
        return None

    def save_result(self, result: dict[str, Any]) -> None:
        """Save the result; the checkpoint has served its purpose."""
        write_atomically(
            self.folder / "result.json", to_json({"configuration": self.configuration} | result)
        )
        for leftover in (self.folder / "checkpoint", *self.folder.glob(".*.tmp")):
            leftover.unlink(missing_ok=True)

    def load_checkpoint(self, device: torch.device, warn: Warn) -> dict[str, Any] | None:
        """The last checkpoint of the run, if there is one."""
        path, problem = self.folder / "checkpoint", "is damaged"
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            data = b""
        expected, payload = data[:32], data[32:]
        if expected and hashlib.sha256(payload).digest() == expected:
            checkpoint: dict[str, Any] = torch.load(
                io.BytesIO(payload), map_location=device, weights_only=True
            )
            if checkpoint["configuration"] == self.configuration:
                return checkpoint
            problem = _OTHER
        warn(f"{path} {problem}: this run starts again from the beginning.")
        return None

    def save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save everything that the run needs to go on; its SHA-256 goes in front."""
        buffer = io.BytesIO()
        torch.save({"configuration": self.configuration} | checkpoint, buffer)
        payload = buffer.getbuffer()  # several copies of the weights: no further ones
        write_atomically(self.folder / "checkpoint", hashlib.sha256(payload).digest(), payload)
