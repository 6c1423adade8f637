"""A small convolutional network for small images."""

from __future__ import annotations

from torch import nn


def small_cnn(width: int = 16, classes: int = 10) -> nn.Sequential:
    """Two convolutions with batch normalisation, then two linear layers.

    It takes images of shape (batch, 1, 8, 8) and gives logits of shape (batch, classes).
    """

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *block(1, width),
        *block(width, 2 * width),
        nn.Flatten(),
        nn.Linear(2 * width * 2 * 2, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
