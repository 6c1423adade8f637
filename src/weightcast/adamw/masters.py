"""float32 masters of low-precision weights, and who else wrote to the weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

from weightcast.moves.plans import generation
from weightcast.tensors import plain

LOW_PRECISION = (torch.bfloat16, torch.float16)


class Masters:
    """Low-precision weights are rounded copies of the `"master"` in their state."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._seen = -1  # the generation of plans that they are of
        self._versions: dict[Tensor, int] = {}  # of the weights, as last written here

    def watch(self, optimizer: Optimizer) -> None:
        """Remember what the weights look like, to notice if others write to them."""
        self._versions = {p: plain(p)._version for p, _ in self._all(optimizer)}

    def heed(self, optimizer: Optimizer, *, others_wrote: bool = False) -> None:
        """Where somebody else wrote to the weights, which are at θ, what differs is the truth."""
        for p, master in self._all(optimizer):
            if others_wrote or self._versions.get(p) != plain(p)._version:
                with torch.no_grad():
                    is_stale = master.to(p.dtype) != p
                    master.copy_(torch.where(is_stale, p, master))

    def _all(self, optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
        if self._seen != generation():
            self._seen, self._pairs = generation(), list(_pairs(optimizer))
        return self._pairs


def _pairs(optimizer: Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        if p.dtype in LOW_PRECISION and "master" in optimizer.state.get(p, {}):
            yield p, optimizer.state[p]["master"]
