"""θ for a while, and θ̂ again to the bit, so that a graph that waits for its backward holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from weightcast.forecast import Forecast
from weightcast.tensors import moving, plain_all


def paused(
    forecast: Forecast, is_same: Callable[[], bool], resumed: Callable[[], None]
) -> Callable[[], None]:
    """Put θ back for an evaluation; gives what to call after it.

    If it runs without gradients, θ̂ comes back to the bit and the version counters with it, so that
    a graph that waits for its backward stays valid. Not so if anything else changed weights or
    settings meanwhile: PyTorch refuses that backward then.

    Args:
        forecast: Whose weights.
        is_same: Whether a new forecast was made by the settings of the last.
        resumed: What to do at the end, once θ̂ is back.
    """
    optimizer = forecast.optimizer
    if torch.is_grad_enabled() or not forecast.backward_pending or optimizer is None:
        forecast.restore()
        return nothing
    params = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [*params, *plain_all(params)]
    counters = list(map(_unsafe_preserve_version_counter, tensors))
    hat = [p.clone() for p in plain_all(params)]
    forecast.restore()
    versions = [p._version for p in tensors]

    def resume() -> None:
        if versions == [p._version for p in tensors]:
            forecast.predict()
            if is_same():
                with moving():
                    torch._foreach_copy_(plain_all(params), hat)
                for counter in counters:
                    counter.__exit__()
                resumed()

    return resume


def nothing() -> None:
    """Do nothing; as a reference, to nothing."""
