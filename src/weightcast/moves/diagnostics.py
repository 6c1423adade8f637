"""What would silently do nothing is said, once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from weightcast.errors import PredictionWarning
from weightcast.moves.passes import Batch
from weightcast.tensors import plain_all

_COARSE = (torch.bfloat16, torch.float16)


class Diagnostics:
    """What has happened so far, as far as it tells whether prediction works at all."""

    def __init__(self) -> None:
        self.has_stepped = False  # and would have predicted
        self.ever_predicted = False
        self._has_looked = False
        self.writes = 0  # to the predicted weights, at the forecast
        self._made: set[str] = set()

    def step_taken(self, is_wanted: bool) -> None:
        """Say so if this is the second step without a forecast."""
        if self.has_stepped and not self.ever_predicted and is_wanted:
            self._report(_NEVER_CALLED)
        self.has_stepped = is_wanted

    def check_anything_known(self, batches: Sequence[Batch]) -> None:
        """Say so if no parameter has a displacement after a step."""
        if self.has_stepped and not batches:
            self._report(_NOTHING_MOVED)

    def check_coarseness(self, moved: Sequence[Batch]) -> None:
        """Whether low-precision weights can express their forecast; synchronises, once."""
        if self._has_looked:
            return
        stuck = total = 0
        for batch in moved:
            self._has_looked = True
            if batch.params[0].dtype in _COARSE and not batch.is_observed:
                params, saved = plain_all(batch.params), plain_all(batch.saved)
                for p, before, delta in zip(params, saved, batch.displacements(), strict=True):
                    wanted = delta != 0
                    total += int(wanted.sum())
                    stuck += int((wanted & (p == before)).sum())
        if stuck > total / 2:
            self._report(_TOO_COARSE.format(stuck / total))

    def check_untouched(self, moved: Sequence[Batch]) -> None:
        """Say so if somebody wrote to predicted weights: θ comes back, and that is lost."""
        if self.writes not in (0, writes_to(moved)):
            self._report(_WRITTEN)

    def _report(self, message: str) -> None:
        if message not in self._made:
            self._made.add(message)
            warnings.warn(message, PredictionWarning, stacklevel=4)


def writes_to(moved: Sequence[Batch]) -> int:
    """How often weights were written to, as autograd counts."""
    return sum(p._version for batch in moved for p in batch.params)


def marks_of_gradients(optimizer: Optimizer | None) -> list[tuple[int, int]]:
    """Differs after a backward."""
    groups = [] if optimizer is None else optimizer.param_groups
    params: list[Tensor] = [p for group in groups for p in group["params"]]
    return [(id(p.grad), p.grad._version) for p in params if p.grad is not None]


_NEVER_CALLED = (
    "weight prediction has done nothing so far: optimizer.step() ran twice without a training-mode "
    "forward of the attached module. Attach the module that the loop calls (and call its train()), "
    "or wrap forward and backward in `with prediction.predicted():`."
)
_NOTHING_MOVED = (
    "weight prediction moves no parameter: the optimizer has taken steps but shows no displacement "
    "for any of them. Its weights may live elsewhere (ZeRO, flattened or master copies), or all "
    "parameters may be frozen."
)
_WRITTEN = (
    "the weights were written to while they were predicted, which is lost when the true ones come "
    "back. If another optimizer trains them now, call detach() on this WeightPrediction first."
)
_TOO_COARSE = (
    "{:.0%} of the low-precision weights are too coarse to move when predicted: the displacement "
    "is below their resolution. Train float32 parameters under autocast instead."
)
