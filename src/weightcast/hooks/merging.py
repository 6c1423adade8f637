"""Layers that add weights to others, and subtract them later (LoRA): both at θ."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from weightcast.forecast import Forecast

MERGING = ("merge", "unmerge")
"""What such a layer is asked for; in between it may be saved, which puts θ back."""


def merge_at_truth(modules: Iterable[nn.Module], forecast: Forecast) -> None:
    """From now on, these modules merge and unmerge at θ."""
    for module in modules:
        if all(callable(getattr(type(module), name, None)) for name in MERGING):
            for name in MERGING:
                at_truth = functools.partial(_at_truth, weakref.ref(module), forecast, name)
                vars(module)[name] = at_truth


def merge_as_before(modules: Iterable[nn.Module]) -> None:
    """Leave no trace."""
    for module in modules:
        for name in MERGING:
            if is_ours(vars(module).get(name)):
                del vars(module)[name]


def is_ours(value: Any) -> bool:
    """Whether it is what stands in a module in place of its class's method."""
    return getattr(value, "func", None) is _at_truth


def _at_truth(
    reference: Callable[[], Any], forecast: Forecast, name: str, *args: Any, **kwargs: Any
) -> Any:
    forecast.restore()
    module = reference()
    return getattr(type(module), name)(module, *args, **kwargs)
