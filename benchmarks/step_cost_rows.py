"""What `step_cost.py` measures: lists of parameters, optimizers, and networks."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

import weightcast

Step = Callable[[], Any]


class Holder(nn.Module):
    """Parameters, and nothing to compute with them."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.params = nn.ParameterList(params)


def gpt2_medium() -> list[tuple[int, ...]]:
    """The shapes of GPT-2 medium: 355 million parameters."""
    d = 1024
    block = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,)]
    block += [(4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [(50257, d), (1024, d), *(shape for _ in range(24) for shape in block), (d,), (d,)]


def resnet34() -> list[tuple[int, ...]]:
    """The shapes of ResNet-34: 21.8 million parameters."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for channels, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            first = inputs if block == 0 else channels
            shapes += [(channels, first, 3, 3), (channels,), (channels,)]
            shapes += [(channels, channels, 3, 3), (channels,), (channels,)]
            if block == 0 and first != channels:
                shapes += [(channels, first, 1, 1), (channels,), (channels,)]
        inputs = channels
    return [*shapes, (1000, 512), (1000,)]


LISTS: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "25M in one": lambda: [(25_000_000,)],
    "ResNet-34": resnet34,
    "1,000 small": lambda: [(42, 50)] * 1000,
    "GPT-2 medium": gpt2_medium,
}


def plain(make: Callable[..., Any], holder: Holder, **options: Any) -> Step:
    """The optimizer's own step."""
    return make(holder.parameters(), **options).step  # type: ignore[no-any-return]


def attached(make: Callable[..., Any], holder: Holder, **options: Any) -> Step:
    """Forecast and step."""
    optimizer = make(holder.parameters(), **options)
    prediction = weightcast.attach(holder, optimizer, 2)

    def step() -> None:
        prediction.predict()
        optimizer.step()

    return step


def own(holder: Holder, **options: Any) -> Step:
    """Forecast and step of `weightcast.AdamW`."""
    optimizer = weightcast.AdamW(holder.parameters(), steps=2, **options)

    def step() -> None:
        optimizer.train()
        optimizer.step()

    return step


def library(name: str, attribute: str) -> Any:
    """An optimizer of another library."""
    return getattr(importlib.import_module(name), attribute)


def available(name: str) -> bool:
    """Whether the library is installed."""
    return importlib.util.find_spec(name) is not None


def lookahead(params: Iterable[nn.Parameter]) -> Any:
    """Lookahead around torch's fused AdamW."""
    from pytorch_optimizer import Lookahead

    return Lookahead(torch.optim.AdamW(params, fused=True), k=5, alpha=0.5)


def schedule_free(params: Iterable[nn.Parameter]) -> Any:
    """In the mode in which it trains."""
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(params)
    optimizer.train()
    return optimizer


ADAMW = torch.optim.AdamW
FUSED, FOREACH, SINGLE = {"fused": True}, {"foreach": True}, {"foreach": False, "fused": False}
NADAMW = partial(torch.optim.NAdam, weight_decay=0.01, decoupled_weight_decay=True)
SGD = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)

# name -> (plain, with its forecast, the library it needs)
Maker = Callable[[Holder], Step]
ROWS: dict[str, tuple[Maker | None, Maker | None, str]] = {
    "AdamW, fused": (None, partial(attached, ADAMW, **FUSED), "torch"),
    "AdamW, foreach": (
        partial(plain, ADAMW, **FOREACH),
        partial(attached, ADAMW, **FOREACH),
        "torch",
    ),
    "AdamW, single": (partial(plain, ADAMW, **SINGLE), partial(attached, ADAMW, **SINGLE), "torch"),
    "weightcast.AdamW, lazy": (None, own, "torch"),
    "weightcast.AdamW, in step": (None, partial(own, in_step=True), "torch"),
    "NAdamW": (partial(plain, NADAMW), partial(attached, NADAMW), "torch"),
    "RAdam": (partial(plain, torch.optim.RAdam), partial(attached, torch.optim.RAdam), "torch"),
    "RMSprop": (
        partial(plain, torch.optim.RMSprop),
        partial(attached, torch.optim.RMSprop),
        "torch",
    ),
    "SGD with momentum": (partial(plain, SGD), partial(attached, SGD), "torch"),
    "Lion": (
        lambda h: plain(library("pytorch_optimizer", "Lion"), h),
        lambda h: attached(library("pytorch_optimizer", "Lion"), h),
        "pytorch_optimizer",
    ),
    "schedule-free AdamW": (partial(plain, schedule_free), None, "schedulefree"),
    "Lookahead on fused AdamW": (partial(plain, lookahead), None, "pytorch_optimizer"),
    "optimi.AdamW": (lambda h: plain(library("optimi", "AdamW"), h, lr=1e-3), None, "optimi"),
    "heavyball.AdamW": (
        lambda h: plain(library("heavyball", "AdamW"), h, lr=1e-3),
        None,
        "heavyball",
    ),
}
LARGE_ROWS = ("AdamW, fused", "weightcast.AdamW, lazy", "weightcast.AdamW, in step")


TRAININGS = (
    "ResNet-34, 64 images of 32x32",
    "LSTM of 650 units, 20 streams of 35 words",
    "Transformer of 4 layers of 256, 16 texts of 128",
)
