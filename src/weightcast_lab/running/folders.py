"""A folder of runs. Every file appears whole or not at all.

FOLDER/config.json                       what all its runs have in common
FOLDER/runs.jsonl                        the finished runs, one a line; see `records`
FOLDER/runs/adamw-s3/seed-0/checkpoint   an unfinished one; gone when it is finished
FOLDER/results.json                      all that a report needs, in one small file
FOLDER/.lock                             held by the command that computes here
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from weightcast_lab.errors import LabError
from weightcast_lab.files import FORMAT, Warn, cannot_be_written, to_json, write_atomically
from weightcast_lab.results.records import RUNS, RunRecord, append_lines, json_line


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
        if (folder / "runs").exists() or (folder / RUNS).exists():
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


@contextmanager
def computing_in(folder: Path) -> Iterator[None]:
    """Keep other commands from computing in the folder; the system ends it with the process.

    Raises:
        LabError: another command computes there, or the folder cannot be used.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=0)
    except Timeout:
        raise LabError(
            f"Another command computes in {folder}: wait until it ends, or choose another --out."
        ) from None
    except NotImplementedError:  # a file system without locks: nobody can be kept out
        pass
    except OSError as error:
        raise cannot_be_written(path, error) from None
    try:
        yield
    finally:
        lock.release()


def remove_empty_folders(folders: Iterable[Path]) -> None:
    """Remove the folders in which finished runs had their checkpoints."""
    for folder in folders:
        runs = folder / "runs"
        for below in (*runs.glob("*"), runs):
            with suppress(OSError):  # it is no folder, or holds something
                below.rmdir()


@dataclass(frozen=True)
class RunFiles:
    """Where a run is kept: its line in the folder's file, and until then its checkpoint."""

    folder: Path
    method: str
    seed: int
    configuration: str

    @property
    def working_folder(self) -> Path:
        """Where files are kept until the run is finished."""
        return self.folder / "runs" / self.method / f"seed-{self.seed}"

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint."""
        return self._checkpoint.exists()

    @property
    def _checkpoint(self) -> Path:
        return self.working_folder / "checkpoint"

    def save_result(self, record: RunRecord) -> None:
        """Append the run to the folder's file; its working folder has served its purpose.

        Raises:
            LabError: it cannot be written.
        """
        append_lines(self.folder / RUNS, record.to_line())
        shutil.rmtree(self.working_folder, ignore_errors=True)

    def epochs_done(self) -> int:
        """The epochs in its checkpoint, by the first line of that file; 0 if there is none."""
        with (
            suppress(OSError, ValueError, KeyError, TypeError),
            self._checkpoint.open("rb") as file,
        ):
            header = json.loads(file.readline(1000))
            if header["configuration"] == self.configuration:
                return int(header["epoch"])
        return 0

    def load_checkpoint(self, device: torch.device, warn: Warn) -> dict[str, Any] | None:
        """The last checkpoint of the run, if there is one. A damaged one counts as none."""
        try:
            data = self._checkpoint.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            data = b""
        header, _, payload = data.partition(b"\n")
        problem = "is damaged"
        try:
            facts = json.loads(header)
            if hashlib.sha256(payload).hexdigest() != facts["sha256"]:
                raise ValueError
            if facts["configuration"] == self.configuration:
                return _load_safely(payload, device)
            problem = OTHER
        except (ValueError, KeyError, TypeError):
            pass
        except pickle.UnpicklingError:
            problem = "holds more than numbers, texts and tensors"
        warn(f"{self._checkpoint} {problem}: this run starts again from the beginning.")
        return None

    def save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save everything that the run needs to go on.

        Raises:
            LabError: it cannot be written, or could not be loaded again.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        payload = buffer.getbuffer()  # several copies of the weights: no further ones
        if not self.has_begun:
            self._refuse_what_cannot_be_loaded(payload)
        facts = {
            "configuration": self.configuration,
            "epoch": checkpoint["epoch"],
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        write_atomically(self._checkpoint, json_line(facts), payload)

    def _refuse_what_cannot_be_loaded(self, payload: memoryview) -> None:
        """Do so before much has been computed that could not be resumed."""
        try:
            _load_safely(payload, torch.device("meta"))
        except pickle.UnpicklingError:
            others = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(payload))
            raise LabError(
                f"{self.method} could not resume after an interruption: the state and groups of "
                "its optimizer must hold numbers, texts, tensors, and lists and dicts of these "
                f"alone, not {', '.join(others) or 'other objects'}."
            ) from None


def _load_safely(payload: bytes | memoryview, device: torch.device) -> dict[str, Any]:
    """Without running code that stands in the file."""
    checkpoint: dict[str, Any] = torch.load(
        io.BytesIO(payload), map_location=device, weights_only=True
    )
    return checkpoint


OTHER = "has another configuration, or your file has changed"
