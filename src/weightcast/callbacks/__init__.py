"""Ready-made callbacks, one per trainer; each needs its own framework and nothing else.

They attach when training begins and detach when it ends, so that fitting twice just works.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightcast.callbacks.lightning import LightningCallback
    from weightcast.callbacks.skorch import SkorchCallback
    from weightcast.callbacks.transformers import TransformersCallback

__all__ = ["LightningCallback", "SkorchCallback", "TransformersCallback"]


def __getattr__(name: str) -> Any:
    """Import a framework only when its callback is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{name.removesuffix('Callback').lower()}"), name)
