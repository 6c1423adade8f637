"""CIFAR-10 from its published archive, or from JPEG copies, as one array."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pooch
from PIL import Image

from weightcast_lab.errors import LabError
from weightcast_lab.files import write_atomically
from weightcast_lab.tasks.base import DataSource

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


TRAINING, VALIDATION, PIXELS = 50_000, 10_000, 3 * 32 * 32


BINARY, JPEG = "cifar-10-binary.tar.gz", "cifar10-jpeg.tar.xz"


BINARY_FOLDER = "cifar-10-batches-bin"


BINARY_URL = f"https://www.cs.toronto.edu/~kriz/{BINARY}"


BINARY_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


BATCHES = (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin")


LARGEST_BATCH, LARGEST_JPEG = 10_000 * (1 + PIXELS), 100_000
"""No file of the archives has more bytes."""

Records = npt.NDArray[np.uint8]
"""Images in the binary archive's format, of shape (60000, 3073), the training images first."""


@dataclass(frozen=True)
class Archive:
    """What holds the images: a file or a folder, and whether they went through JPEG."""

    path: Path
    is_jpeg: bool

    @property
    def name(self) -> str:
        """The data, as results call them."""
        return "CIFAR-10 (lossy JPEG)" if self.is_jpeg else "CIFAR-10"


def find_archive(source: DataSource) -> Archive:
    """The images in the folder that the user names, or fetched from the official address.

    Raises:
        LabError: there are none, or they cannot be fetched.
    """
    if source.folder is None:
        if not source.download:
            raise LabError(
                f"The task 'cifar10' needs --data FOLDER with {BINARY} or {JPEG}, or --download to "
                f"fetch the former from {BINARY_URL}."
            )
        return Archive(_download(), is_jpeg=False)
    folder = source.folder
    candidates = [
        Archive(folder / BINARY, is_jpeg=False),
        Archive(folder / BINARY_FOLDER, is_jpeg=False),
        Archive(folder / JPEG, is_jpeg=True),
    ]
    if folder.name in (BINARY, BINARY_FOLDER, JPEG):
        candidates.append(Archive(folder, is_jpeg=folder.name == JPEG))
    if (folder / BATCHES[-1]).exists():
        candidates.append(Archive(folder, is_jpeg=False))
    if (folder / "train").is_dir():
        candidates.append(Archive(folder, is_jpeg=True))
    for candidate in candidates:
        if candidate.path.exists():
            return candidate
    if source.download:
        return Archive(_download(), is_jpeg=False)
    raise LabError(
        f"There is no CIFAR-10 in {folder}: put {BINARY} or {JPEG} there, or give --download to "
        f"fetch the former from {BINARY_URL}."
    )


def cache_folder() -> Path:
    """Where downloads and decoded images are kept."""
    return Path(os.environ.get("WEIGHTCAST_CACHE") or pooch.os_cache("weightcast"))


def _download() -> Path:
    try:
        found = pooch.retrieve(
            BINARY_URL, BINARY_SHA256, BINARY, cache_folder(), progressbar=_has_tqdm()
        )
    except Exception as error:  # whatever goes wrong on the way
        raise LabError(
            f"{BINARY_URL} cannot be fetched ({error}): fetch it yourself and give its folder as "
            "--data."
        ) from None
    return Path(found)


def _has_tqdm() -> bool:
    """Whether pooch can show a bar."""
    return find_spec("tqdm") is not None


def load_records(archive: Archive) -> Records:
    """All images, decoded at first and from the cache later.

    Raises:
        LabError: the archive is damaged or not CIFAR-10, or the cache cannot be written.
    """
    identity = _identity(archive)
    path = cache_folder() / f"cifar10-{identity[:16]}.npy"
    digest_path = path.with_suffix(".sha256")
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == digest_path.read_text():
            records: Records = np.load(io.BytesIO(data), allow_pickle=False)
            return records
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise LabError(f"{path} cannot be read ({error}): delete it.") from None
    records = _decode(archive)
    buffer = io.BytesIO()
    np.save(buffer, records, allow_pickle=False)
    write_atomically(path, buffer.getvalue())
    write_atomically(digest_path, hashlib.sha256(buffer.getvalue()).hexdigest().encode())
    return records


def _identity(archive: Archive) -> str:
    """A hash that changes if the files do."""
    digest = hashlib.sha256()
    try:
        if archive.path.is_file():
            with archive.path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if not archive.is_jpeg and found != BINARY_SHA256:
                raise LabError(
                    f"{archive.path} is not the published archive, or truncated (its SHA-256 is "
                    f"{found[:16]}…, not {BINARY_SHA256[:16]}…): fetch it again."
                )
            return found
        for file in sorted(archive.path.rglob("*")):
            if file.is_file():
                status = file.stat()
                name = file.relative_to(archive.path).as_posix()
                digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    except OSError as error:
        raise LabError(f"{archive.path} cannot be read ({error.strerror}).") from None
    return digest.hexdigest()


def _decode(archive: Archive) -> Records:
    """The images in the archive, counted."""
    try:
        parts = dict(_members(archive))
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        # lzma and zlib have errors of their own, which are not all of these
        raise _damaged(archive, error) from None
    except Exception as error:
        if type(error).__module__ in ("lzma", "_lzma", "zlib"):
            raise _damaged(archive, error) from None
        raise
    records = _decode_jpegs(archive, parts) if archive.is_jpeg else _join_batches(archive, parts)
    for part, count, kind in (
        (records[0], TRAINING, "training"),
        (records[1], VALIDATION, "test"),
    ):
        if len(part) != count:
            raise LabError(
                f"{archive.path} has {len(part):,} {kind} images instead of {count:,}: copy it "
                "again."
            )
        numbers = np.bincount(part[:, 0], minlength=10)
        if len(numbers) != 10 or (numbers != count // 10).any():
            worst = int(np.argmax(numbers != count // 10))
            raise LabError(
                f"{archive.path} has {numbers[worst]:,} {kind} images of class {worst} instead of "
                f"{count // 10:,}: copy it again."
            )
    return np.concatenate(records)


def _damaged(archive: Archive, error: Exception) -> LabError:
    return LabError(f"{archive.path} is damaged ({error}): copy it again.")


def _members(archive: Archive) -> Iterator[tuple[str, bytes]]:
    """The files of the archive with their names, as they lie there."""
    if archive.path.is_dir():
        for path in sorted(archive.path.rglob("*")):
            if path.is_file() and _is_wanted(archive, path.as_posix()):
                _check_size(archive, path.as_posix(), path.stat().st_size)
                yield path.as_posix(), path.read_bytes()
        return
    with tarfile.open(archive.path) as tar:
        for member in tar:
            if member.isfile() and _is_wanted(archive, member.name):
                _check_size(archive, member.name, member.size)
                file = tar.extractfile(member)
                assert file is not None  # since it is a file
                yield member.name, file.read()


def _check_size(archive: Archive, name: str, size: int) -> None:
    """Refuse what cannot be what it should be before it is read."""
    if size > (LARGEST_JPEG if archive.is_jpeg else LARGEST_BATCH):
        raise LabError(f"{name} in {archive.path} has {size:,} bytes, too many: copy it again.")


def _is_wanted(archive: Archive, name: str) -> bool:
    if archive.is_jpeg:
        return re.search(r"(^|/)(train|test)/\w+/[^/]+\.jpe?g$", name) is not None
    return name.rpartition("/")[2] in BATCHES


def _join_batches(archive: Archive, parts: dict[str, bytes]) -> tuple[Records, Records]:
    found = {name.rpartition("/")[2]: data for name, data in parts.items()}
    for name in BATCHES:
        if name not in found:
            raise LabError(f"{name} is missing in {archive.path}: copy it again.")
        if len(found[name]) % (1 + PIXELS):
            raise LabError(f"{name} in {archive.path} is truncated: copy it again.")
    arrays = [np.frombuffer(found[n], np.uint8).reshape(-1, 1 + PIXELS) for n in BATCHES]
    return np.concatenate(arrays[:-1]), arrays[-1]


def _decode_jpegs(archive: Archive, parts: dict[str, bytes]) -> tuple[Records, Records]:
    rows: dict[str, list[Records]] = {"train": [], "test": []}
    for name in sorted(parts):
        *_, kind, label, _ = name.split("/")
        if label not in CLASSES:
            raise LabError(f"{archive.path} has a class {label!r}, which CIFAR-10 has not.")
        try:
            with Image.open(io.BytesIO(parts[name]), formats=["JPEG"]) as image:
                if image.size != (32, 32):  # as its header says: nothing is decoded yet
                    raise Image.DecompressionBombError
                pixels = np.asarray(image.convert("RGB"))
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise LabError(
                f"{name} in {archive.path} is not of 32x32 pixels: copy it again."
            ) from None
        except OSError as error:
            raise LabError(
                f"{name} in {archive.path} is damaged ({error}): copy it again."
            ) from None
        planes = pixels.transpose(2, 0, 1).reshape(-1)
        rows[kind].append(np.concatenate([[CLASSES.index(label)], planes]).astype(np.uint8))

    def stacked(kind: str) -> Records:
        return np.array(rows[kind], np.uint8).reshape(-1, 1 + PIXELS)

    return stacked("train"), stacked("test")
