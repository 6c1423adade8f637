"""Convolutional networks for images of 32x32 pixels, out of torchvision's blocks.

The paper's, and ResNet-10, which is ResNet-34 with one block a stage, for short runs. The paper
does not say whose variants it trained; these are the ones in common use for CIFAR-10: the
published networks without the early strides and poolings that suit larger images, and with one
linear layer at the end. Weights start as torchvision starts them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weightcast_lab.errors import LabError, unknown_name

try:
    from torchvision.models import DenseNet, ResNet, inception, resnet, vgg
except ImportError:  # some versions of torch have no torchvision that fits
    raise LabError(
        "The networks for CIFAR-10 need torchvision, in the version that fits your torch: install "
        "weightcast[lab] into a fresh environment."
    ) from None


@dataclass(frozen=True)
class Network:
    """A network by its usual name, and the function that makes it from a width and the classes."""

    label: str
    build: Callable[[Callable[[int], int], int], nn.Module]


def build_network(name: str, width: float = 1.0, classes: int = 10) -> nn.Module:
    """A network of `NETWORKS`, with `width` times as many channels as published.

    It takes images of shape (batch, 3, 32, 32) and gives logits of shape (batch, classes).

    Raises:
        LabError: there is no such network, or the width does not give whole numbers of channels.
    """
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)

    def scaled(channels: int) -> int:
        result = channels * width
        if result < 1 or result % 1:
            raise LabError(
                f"width={width:g} is not possible for {name}: {channels} channels would become "
                f"{result:g}; use 1, 0.5 or 0.25."
            )
        return int(result)

    return NETWORKS[name].build(scaled, classes)


def _vgg11(scaled: Callable[[int], int], classes: int, *, batch_norm: bool) -> nn.Module:
    layers = [c if isinstance(c, str) else scaled(c) for c in vgg.cfgs["A"]]
    head = nn.Linear(scaled(512), classes)  # five poolings have left one pixel
    network = nn.Sequential(vgg.make_layers(layers, batch_norm), nn.Flatten(), head)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    nn.init.normal_(head.weight, 0, 0.01)
    nn.init.zeros_(head.bias)
    return network


class _ResNet(ResNet):
    """A ResNet whose first layer keeps the resolution, of any width."""

    def __init__(
        self,
        blocks: list[int],
        scaled: Callable[[int], int],
        classes: int,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__(resnet.BasicBlock, [1, 1, 1, 1], num_classes=classes, norm_layer=norm)
        self.inplanes = scaled(64)
        self.conv1 = nn.Conv2d(3, scaled(64), kernel_size=3, padding=1, bias=False)
        self.bn1 = norm(scaled(64))
        self.maxpool = nn.Identity()
        for position, count in enumerate(blocks):
            stage = self._make_layer(
                resnet.BasicBlock,
                scaled(64 << position),
                count,
                stride=1 if position == 0 else 2,
            )
            setattr(self, f"layer{position + 1}", stage)
        self.fc = nn.Linear(scaled(512), classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _resnet34(scaled: Callable[[int], int], classes: int) -> nn.Module:
    return _ResNet([3, 4, 6, 3], scaled, classes)


class _Shift(nn.Module):
    """What is left of a BatchNorm that does not normalise: a number for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """The shifted images."""
        return images + self.bias


def _resnet10(scaled: Callable[[int], int], classes: int, *, batch_norm: bool) -> nn.Module:
    """Without BatchNorm every block begins close to its shortcut, or activations would grow."""
    if batch_norm:
        return _ResNet([1, 1, 1, 1], scaled, classes)
    network = _ResNet([1, 1, 1, 1], scaled, classes, _Shift)
    for module in network.modules():
        if isinstance(module, resnet.BasicBlock):
            nn.init.kaiming_normal_(module.conv2.weight, mode="fan_out", nonlinearity="relu")
            module.conv2.weight.data.div_(4)  # one over the number of blocks
    return network


def _densenet121(scaled: Callable[[int], int], classes: int) -> nn.Module:
    growth = scaled(32)
    network = DenseNet(growth, (6, 12, 24, 16), 2 * growth, num_classes=classes)
    stem: Any = network.features
    stem.conv0 = nn.Conv2d(3, 2 * growth, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.conv0.weight)
    stem.pool0 = nn.Identity()
    return network


class _InceptionV3(nn.Module):
    """Inception-V3 with a stem that keeps 30x30 pixels, and without the auxiliary head."""

    def __init__(self, scaled: Callable[[int], int], classes: int) -> None:
        super().__init__()

        conv = partial(_scaled_convolution, scaled)
        self.features = nn.Sequential(
            inception.BasicConv2d(3, scaled(32), kernel_size=3, padding=1),
            conv(32, 32, kernel_size=3, padding=1),
            conv(32, 64, kernel_size=3, padding=1),
            conv(64, 80, kernel_size=1),
            conv(80, 192, kernel_size=3),
            inception.InceptionA(192, 32, conv),
            inception.InceptionA(256, 64, conv),
            inception.InceptionA(288, 64, conv),
            inception.InceptionB(288, conv),
            *(inception.InceptionC(768, c, conv) for c in (128, 160, 160, 192)),
            inception.InceptionD(768, conv),
            inception.InceptionE(1280, conv),
            inception.InceptionE(2048, conv),
        )
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(scaled(2048), classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.1, a=-0.2, b=0.2)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        pooled = self.features(images).mean((2, 3))
        logits: Tensor = self.fc(self.dropout(pooled))
        return logits


def _scaled_convolution(
    scaled: Callable[[int], int], inputs: int, outputs: int, **rest: Any
) -> nn.Module:
    return inception.BasicConv2d(scaled(inputs), scaled(outputs), **rest)


NETWORKS = {
    "vgg11": Network("VGG-11", partial(_vgg11, batch_norm=False)),
    "vgg11_bn": Network("VGG-11 with BatchNorm", partial(_vgg11, batch_norm=True)),
    "resnet34": Network("ResNet-34", _resnet34),
    "densenet121": Network("DenseNet-121", _densenet121),
    "inception_v3": Network("Inception-V3", _InceptionV3),
    "resnet10": Network("ResNet-10", partial(_resnet10, batch_norm=True)),
    "resnet10_plain": Network("ResNet-10 without BatchNorm", partial(_resnet10, batch_norm=False)),
}


def parameter_count(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters())


# network -> what its publication, or torchvision's for 1,000 classes, counts, and why ours differs
_PUBLISHED = {
    "vgg11": ("132,863,336", "three linear layers and 1,000 classes; ours has one and ten"),
    "vgg11_bn": ("132,868,840", "the same"),
    "resnet34": ("21,797,672", "1,000 classes and a 7x7 first layer; ours is 3x3"),
    "densenet121": ("7,978,856", "1,000 classes and a 7x7 first layer; ours is 3x3"),
    "inception_v3": ("27,161,264", "1,000 classes and an auxiliary head of 3.3 million"),
    "resnet10": ("–", "not the paper's: one block of ResNet-34's a stage, for short runs"),
    "resnet10_plain": ("–", "the same with a shift for each channel instead of BatchNorm"),
}


def table() -> list[list[str]]:
    """Parameters of each network here and as published, and why they differ."""
    rows = []
    for name, network in NETWORKS.items():
        full, quarter = (parameter_count(build_network(name, width)) for width in (1, 0.25))
        published, why = _PUBLISHED[name]
        rows.append([network.label, why, f"{full:,}", published, f"{quarter:,}"])
    return rows
