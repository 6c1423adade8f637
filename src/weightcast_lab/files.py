"""Files that appear whole or not at all, and what stands in them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from weightcast_lab.errors import LabError

FORMAT = 2
"""The format of all files: raised when an older version could not read them."""

Warn = Callable[[str], None]


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that a crash, a full disk or a signal leaves the old one or the new one.

    The file that a symbolic link leads to is written, and keeps its mode.

    Raises:
        LabError: it cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
            sync_folder(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_be_written(path, error) from None


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are safe on disk, where the system can say so."""
    with suppress(OSError):  # Windows opens no folders, and some file systems sync none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cannot_be_written(path: Path, error: OSError) -> LabError:
    """What to tell a person whose disk is full, or whose folder is not theirs."""
    return LabError(
        f"{path} cannot be written ({error.strerror}): make room or choose another --out; what "
        "is finished is kept, and the same command resumes."
    )


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
