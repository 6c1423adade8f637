"""What would silently do nothing is said, once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from weightcast.errors import warn
from weightcast.moves.passes import Batch
from weightcast.moves.samples import Samples
from weightcast.tensors import plain_all

_log = logging.getLogger("weightcast")
_LOOKS = 3
_COARSE = (torch.bfloat16, torch.float16)


class Diagnostics:
    """What has happened so far, as far as it tells whether prediction works at all."""

    def __init__(self) -> None:
        self.has_stepped = False  # and would have predicted
        self.ever_predicted = False
        self._has_looked = False
        self.about = ""  # whom: said at the end of every message
        self._made: set[str] = set()
        self._writes = 0  # to the weights, at the forecast
        self._samples = Samples()
        self._looks = 0  # at weights that were written to
        self.expects_writes = False  # its optimizer climbs from the forecast, and comes back

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

    def note_writes(self, params: Sequence[Tensor]) -> None:
        """What was written to predicted weights so far is no matter."""
        self._writes = versions_of(params)
        self._samples.take(params)

    def check_untouched(self, params: Sequence[Tensor], is_as_before: Callable[[], bool]) -> None:
        """Say so if somebody wrote to predicted weights: θ comes back, and that is lost.

        An optimizer that climbs before its second gradient puts them back: look, a few times.
        """
        is_written = versions_of(params) != self._writes
        if (is_written or self._samples.differ()) and self._looks < _LOOKS:
            self._looks += 1
            if not self.expects_writes and not is_as_before():
                self._looks = _LOOKS
                self._report(_WRITTEN)
        self.forget_weights()

    def forget_weights(self) -> None:
        """Hold none of them."""
        self._samples.clear()

    def replaced(self, old: Tensor, new: Tensor | None) -> None:
        """Say so if a predicted parameter was replaced by what cannot be told from its forecast."""
        shapes = tuple(old.shape), "nothing" if new is None else tuple(new.shape)
        self._report(_REPLACED.format(*shapes))

    def shapes_changed(self, params: Sequence[Tensor]) -> None:
        """Say so if weights were cut or grown while predicted: there is no θ for them."""
        shapes = ", ".join(str(tuple(p.shape)) for p in params)
        self._report(_CHANGED.format(shapes))

    def nothing_loaded(self) -> None:
        """Log it if a checkpoint has no displacements where no state tells them: no fault."""
        _log.warning(_NOT_LOADED)

    def _report(self, message: str) -> None:
        if message not in self._made:
            self._made.add(message)
            warn(message + self.about)


def versions_of(params: Iterable[Tensor]) -> int:
    """How often parameters were written to, as autograd counts."""
    return sum(map(_version, params))


_version = Tensor._version.__get__  # type: ignore[attr-defined]


def marks_of_gradients(optimizer: Optimizer | None) -> list[tuple[int, int]]:
    """Differs after a backward."""
    groups = [] if optimizer is None else optimizer.param_groups
    params: list[Tensor] = [p for group in groups for p in group["params"]]
    return [(id(p.grad), p.grad._version) for p in params if p.grad is not None]


_NEVER_CALLED = (
    "weight prediction has done nothing so far: optimizer.step() ran twice without a training-mode "
    "forward of the attached module. Attach the module that the loop calls (and call its train()); "
    "or, if it is called by another method than forward, wrap that and the backward in "
    "`with prediction.predicted():`."
)
_NOTHING_MOVED = (
    "weight prediction moves no parameter: the optimizer has taken steps but shows no displacement "
    "for any of them. Its weights may live elsewhere (ZeRO, flattened or master copies), or all "
    "parameters may be frozen."
)
_WRITTEN = (
    "the weights were written to while they were predicted, which is lost when the true ones come "
    "back. If another optimizer trains them now, call detach() on this WeightPrediction first; "
    "what is to stay is written after step(), or in `with prediction.true_weights():`."
)
_CHANGED = (
    "weights took another shape while they were predicted, now {}: they stay as they are, which "
    "may be the forecast. Call prediction.restore() before weights are cut or grown."
)
_REPLACED = (
    "a parameter of shape {} was replaced by one of shape {} while it was predicted: what was made "
    "of it stays at the forecast. Call prediction.restore() before parameters are replaced."
)
_NOT_LOADED = (
    "the loaded state of the optimizer holds no displacements: it was saved without weight "
    "prediction, or by torch.distributed.checkpoint into an optimizer that had none yet. The next "
    "forward runs at the true weights, the one after the next step at the forecast."
)
_TOO_COARSE = (
    "{:.0%} of the low-precision weights are too coarse to move when predicted: the displacement "
    "is below their resolution. Train float32 parameters under autocast instead."
)
