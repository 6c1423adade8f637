"""CIFAR-10: 60,000 photographs of 32x32 pixels in ten classes, and the paper's networks on them.

The images come from the published binary archive, or from JPEG copies of them, which are lossy:
results then say so. Nothing is ever unpickled or unpacked to disk. They are decoded once into one
array in the cache (the system's cache folder, or the environment variable WEIGHTCAST_CACHE), in the
archive's own format: 3,073 bytes an image, its class and then red, green and blue row by row.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pooch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from weightcast_lab.errors import LabError
from weightcast_lab.files import write_atomically
from weightcast_lab.tasks import DataSource, Metric, Preset, Task
from weightcast_lab.tasks.networks.cifar import NETWORKS, build_network

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

# the usual mean and standard deviation of red, green and blue over the training images
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PADDING = 4  # pixels, black
EVALUATION_BATCH = 500

Records = npt.NDArray[np.uint8]
"""Images in the binary archive's format, of shape (60000, 3073), the training images first."""


# --- from files to records -----------------------------------------------------------------------


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
                yield path.as_posix(), path.read_bytes()
        return
    with tarfile.open(archive.path) as tar:
        for member in tar:
            if member.isfile() and _is_wanted(archive, member.name):
                file = tar.extractfile(member)
                assert file is not None  # since it is a file
                yield member.name, file.read()


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
                pixels = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise LabError(
                f"{name} in {archive.path} is damaged ({error}): copy it again."
            ) from None
        if pixels.shape != (32, 32, 3):
            raise LabError(f"{name} in {archive.path} is not of 32x32 pixels: copy it again.")
        planes = pixels.transpose(2, 0, 1).reshape(-1)
        rows[kind].append(np.concatenate([[CLASSES.index(label)], planes]).astype(np.uint8))

    def stacked(kind: str) -> Records:
        return np.array(rows[kind], np.uint8).reshape(-1, 1 + PIXELS)

    return stacked("train"), stacked("test")


# --- the task ------------------------------------------------------------------------------------

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Indices of images, the upper and left edges of their crops, and whether each is mirrored."""


class Cifar10Task(Task):
    """Images on the device as bytes; each batch is cropped, mirrored and scaled there at once."""

    metric = Metric("accuracy (%)", decimals=2, higher_is_better=True)
    preset = Preset(learning_rate=1e-3, batch_size=128, epochs=10, seeds=3)

    def __init__(
        self,
        archive: Archive,
        records: Records,
        network: str,
        width: float,
        training_images: int,
        validation_images: int,
        test_images: int,
    ) -> None:
        """A part of the images is the same for every seed and has all classes equally."""
        self.network, self.width = network, width
        self.test_images: tuple[Tensor, Tensor] | None = None
        if test_images:
            order = torch.randperm(TRAINING, generator=torch.Generator().manual_seed(1)).numpy()
            kept = TRAINING - TRAINING // 5
            self.training = _chosen(records[order[:kept]], training_images)
            self.validation = _chosen(records[order[kept:]], validation_images)
            self.test_images = _chosen(records[TRAINING:], test_images)
        else:
            self.training = _chosen(records[:TRAINING], training_images)
            self.validation = _chosen(records[TRAINING:], validation_images)
        part = f", {training_images:,} images" if training_images < TRAINING else ""
        narrow = f" at width {width:g}" if width != 1 else ""
        self.title = f"{archive.name}, {NETWORKS[network].label}{narrow}{part}"
        self.facts = {
            "data": archive.name,
            "data sha256": hashlib.sha256(np.ascontiguousarray(records).tobytes()).hexdigest(),
            "training images": training_images,
            "validation images": validation_images,
            "network": network,
            "width": width,
            **({"test images": test_images} if test_images else {}),
        }
        self.mean = 255 * torch.tensor(MEAN)
        self.scale = 1 / (255 * torch.tensor(STD))

    def build_model(self) -> nn.Module:
        """The network, its convolutions channels-last."""
        network = build_network(self.network, self.width)
        return network.to(memory_format=torch.channels_last)

    def to(self, device: torch.device) -> None:
        """Move images and classes."""
        self.training = (self.training[0].to(device), self.training[1].to(device))
        self.validation = (self.validation[0].to(device), self.validation[1].to(device))
        if self.test_images is not None:
            self.test_images = (self.test_images[0].to(device), self.test_images[1].to(device))
        self.mean, self.scale = self.mean.to(device), self.scale.to(device)

    def batches(self, batch_size: int, generator: torch.Generator) -> Sequence[Batch]:
        """Shuffled, with crops and reflections drawn for the epoch.

        A single last image is left out: BatchNorm can do nothing with one.
        """
        images = len(self.training[1])
        if batch_size > images:
            raise LabError(
                f"--batch-size {batch_size:,} is more than the {images:,} training images."
            )
        order = torch.randperm(images, generator=generator)
        edges = torch.randint(2 * PADDING + 1, (2, images), generator=generator)
        mirrored = torch.rand(images, generator=generator) < 0.5
        device = self.training[0].device
        columns = [t.to(device).split(batch_size) for t in (order, *edges, mirrored)]
        batches = list(zip(*columns, strict=True))
        return batches[:-1] if images % batch_size == 1 else batches

    def loss(self, model: nn.Module, batch: Batch, carried: None) -> tuple[Tensor, None]:
        """Cross-entropy in nats."""
        indices, top, left, mirrored = batch
        images, classes = self.training
        pixels = torch.arange(32, device=images.device)
        rows = top.unsqueeze(1) + pixels
        columns = left.unsqueeze(1) + torch.where(mirrored.unsqueeze(1), 31 - pixels, pixels)
        padded = pad(images[indices], (0, 0, PADDING, PADDING, PADDING, PADDING))
        which = torch.arange(len(indices), device=images.device)
        crops = padded[which[:, None, None], rows.unsqueeze(2), columns.unsqueeze(1)]
        return cross_entropy(model(self._scaled(crops)), classes[indices]), None

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """Cross-entropy in nats and accuracy in per cent."""
        return self._measured(model, *self.validation)

    def test(self, model: nn.Module) -> dict[str, float]:
        """Accuracy in per cent on the test images, if any are kept apart."""
        if self.test_images is None:
            return {}
        return {"test accuracy (%)": self._measured(model, *self.test_images)[1]}

    def test_loss(self, model: nn.Module) -> float | None:
        """Cross-entropy in nats on the test images, if any are kept apart."""
        return None if self.test_images is None else self._measured(model, *self.test_images)[0]

    def _measured(self, model: nn.Module, images: Tensor, classes: Tensor) -> tuple[float, float]:
        loss, correct = torch.zeros((2, 1), dtype=torch.float64, device=images.device)
        for pixels, labels in zip(
            images.split(EVALUATION_BATCH), classes.split(EVALUATION_BATCH), strict=True
        ):
            logits = model(self._scaled(pixels)).float()
            loss += cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
        return loss.item() / len(classes), 100 * correct.item() / len(classes)

    def _scaled(self, pixels: Tensor) -> Tensor:
        """Bytes of shape (batch, 32, 32, 3) as what the network takes: channels-last in memory."""
        return ((pixels - self.mean) * self.scale).permute(0, 3, 1, 2)


def _chosen(records: Records, images: int) -> tuple[Tensor, Tensor]:
    """So many images, of shape (images, 32, 32, 3), and their classes; equally many of each class.

    Raises:
        LabError: there are not so many, or they cannot be shared out equally.
    """
    if not 0 < images <= len(records) or images % 10:
        raise LabError(
            f"{images:,} images are not possible: choose a multiple of 10, at most "
            f"{len(records):,}, so that every class has equally many."
        )
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(0)).numpy()
    labels = records[order, 0]
    kept = np.sort(np.concatenate([order[labels == label][: images // 10] for label in range(10)]))
    chosen = torch.from_numpy(np.ascontiguousarray(records[kept]))
    pixels = chosen[:, 1:].view(-1, 3, 32, 32).permute(0, 2, 3, 1).contiguous()
    return pixels, chosen[:, 0].long()


def cifar10(
    source: DataSource,
    *,
    network: str = "resnet34",
    width: float = 1.0,
    training_images: int = TRAINING,
    validation_images: int = VALIDATION,
    test_images: int = 0,
) -> Task:
    """The task `cifar10`: one of `models.cifar.NETWORKS`, validated on CIFAR-10's test images.

    Args:
        source: Where the archive is.
        network: By name.
        width: Times as many channels as published.
        training_images: A part of the 50,000, the same for every seed.
        validation_images: A part of the 10,000.
        test_images: A part of the 10,000 that is kept apart for the end of a run; a fifth of the
            50,000, which is then not trained on, serves for validation.

    Raises:
        LabError: the images cannot be used, or an option is not possible.
    """
    build_network(network, width)
    archive = find_archive(source)
    records = load_records(archive)
    sizes = training_images, validation_images, test_images
    return Cifar10Task(archive, records, network, width, *sizes)
