"""What the tests of the callbacks share."""

from typing import Any

from torch import nn


class Interrupted(Exception):
    """Whatever may happen in a training run."""


def traces(*things: Any) -> set[str]:
    """What is hooked, or copied in a way of its own."""
    parts = [part for t in things for part in (t.modules() if isinstance(t, nn.Module) else [t])]
    return {
        name
        for part in parts
        for name, value in vars(part).items()
        if (name.endswith("_hooks") and value) or name in ("__deepcopy__", "__reduce_ex__")
    }


def interrupted_at(number: int) -> Any:
    """A forward hook that raises in that training forward."""
    count = 0

    def hook(module: nn.Module, *_: Any) -> None:
        nonlocal count
        count += module.training
        if count == number:
            raise Interrupted

    return hook
