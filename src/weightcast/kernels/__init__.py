"""AdamW's step and the forecast along it, each in one pass over memory.

Every back-end has the same entry points, `step(operands, settings)`, `forecast(operands, settings)`
and `restore(operands)`; `eager` (plain PyTorch) is the oracle of the others:

| | reads | writes |
|---|---|---|
| `step` | θ, g, m, v, t | m, v, t, θ̂ to `params`, θ to `sinks` |
| `forecast` | θ, m, v, t | θ̂ to `params`, θ to `sinks` |
| `restore` | θ | θ to `params` |

θ is read from `sources`, else from `params`; nothing is written to `sinks` if there are none.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from weightcast.kernels.operands import moments
from weightcast.tensors import plain

_log = logging.getLogger("weightcast")


@functools.cache
def _load(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ImportError as error:
        _log.debug("weightcast: no %s kernels (%s); using plain PyTorch.", name, error)
        return None


def fused_backend(p: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """The kernels that handle this parameter with its moments and master, if any do."""
    name = {"cpu": "cpu", "cuda": "triton"}.get(p.device.type)
    module = _load(name) if name else None
    if module is None or p.is_neg():
        return None
    others = [plain(state[key]) for key in (*moments(group), "master") if key in state]
    return module if module.handles(plain(p), others) else None


def backend_for(p: Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> Any:
    """The fastest back-end for this parameter with its moments and master."""
    return fused_backend(p, state, group) or _load("eager")
