"""A few numbers of predicted weights: autograd does not count what is written through `.data`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightcast.tensors import are_real

_KINDS: dict[int, Any] = {2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}
_WINDOW = 8
"""Parameters that are looked at, others each time."""


class Samples:
    """One number of each of a few parameters on the CPU; on a device, looking would wait."""

    def __init__(self) -> None:
        self._turn = 0
        self._taken: list[tuple[Tensor, tuple[int, int, torch.dtype], Any, int]] = []

    def take(self, params: Sequence[Tensor]) -> None:
        """Remember what they are now."""
        self._turn += 1
        start = self._turn * _WINDOW % len(params) if len(params) > _WINDOW else 0
        self._taken = []
        for p in params[start : start + _WINDOW]:
            kind = _KINDS.get(p.element_size())
            if not (are_real((p,)) and p.is_cpu and kind and p.numel()) or p.is_complex():
                continue
            place = _place(p)
            offset = self._turn * 7919 % p.numel() if p.is_contiguous() else 0
            there = kind.from_address(place[0] + offset * p.element_size())
            self._taken.append((p, place, there, there.value))

    def differ(self) -> bool:
        """Whether any of them has changed where it is; what has moved elsewhere does not count."""
        return any(
            place == _place(p) and there.value != value for p, place, there, value in self._taken
        )

    def clear(self) -> None:
        """Forget them."""
        self._taken = []


def _place(p: Tensor) -> tuple[int, int, torch.dtype]:
    return p.data_ptr(), p.numel(), p.dtype
