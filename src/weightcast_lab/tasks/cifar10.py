"""CIFAR-10: 60,000 photographs of 32x32 pixels in ten classes, and the paper's networks on them.

The images come from the published binary archive, or from JPEG copies of them, which are lossy:
results then say so. Nothing is ever unpickled or unpacked to disk. They are decoded once into one
array in the cache (the system's cache folder, or the environment variable WEIGHTCAST_CACHE), in the
archive's own format: 3,073 bytes an image, its class and then red, green and blue row by row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from weightcast_lab.errors import LabError
from weightcast_lab.tasks.base import DataSource, Metric, Preset, Task
from weightcast_lab.tasks.cifar10_files import (
    TRAINING,
    VALIDATION,
    Archive,
    Records,
    find_archive,
    load_records,
)
from weightcast_lab.tasks.networks.cifar import NETWORKS, build_network

# the usual mean and standard deviation of red, green and blue over the training images
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PADDING = 4  # pixels, black
EVALUATION_BATCH = 500


# --- from files to records -----------------------------------------------------------------------


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
