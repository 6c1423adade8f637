"""Addresses on their way to a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_uploads: dict[tuple[Any, ...], Tensor] = {}
_reserve = torch.empty(0, dtype=torch.int64, device="cpu")
_captured: list[Tensor] = []


def on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Addresses for the device, which has most of them from before.

    A CUDA graph reads them anew with each replay, so that nothing else may ever use their pinned
    memory; and torch before 2.11 cannot allocate any while it captures.
    """
    global _reserve
    count, is_cuda = len(numbers), device.type == "cuda"
    is_captured = is_cuda and torch.cuda.is_current_stream_capturing()
    found = _uploads.get((device, numbers))
    if found is not None:
        if is_captured:
            _captured.append(found)
        return found
    host = torch.tensor(numbers, dtype=torch.int64, device="cpu")
    if is_captured:
        pinned, _reserve = _reserve[:count], _reserve[count:]
        pinned = pinned.copy_(host) if len(pinned) == count else host.pin_memory()
        _captured.append(pinned)
        return pinned.to(device, non_blocking=True)
    if is_cuda:
        host = host.pin_memory()
        if len(_reserve) < 8 * count:
            _reserve = host.new_empty(max(8 * count, 2**14)).pin_memory()
    if len(_uploads) == 64:
        del _uploads[next(iter(_uploads))]
    found = _uploads[device, numbers] = host.to(device, non_blocking=True)
    return found
