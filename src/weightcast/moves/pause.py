"""θ for a while, and θ̂ again to the bit, so that a graph that waits for its backward holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.parameter import is_lazy

from weightcast.forecast import Forecast, nothing
from weightcast.tensors import moving, plain_all


def paused(
    forecast: Forecast,
    for_reading: bool,
    is_same: Callable[[], bool],
    resumed: Callable[[], None],
) -> Callable[[], None]:
    """Put θ back for an evaluation; gives what to call after it.

    If it runs without gradients, θ̂ comes back to the bit and the version counters with it, so that
    a graph that waits for its backward stays valid. Not so if anything else changed weights or
    settings meanwhile: PyTorch refuses that backward then.

    Args:
        forecast: Whose weights.
        for_reading: Nothing will be computed of θ that has a backward, even where gradients are
            enabled.
        is_same: Whether a new forecast was made by the settings of the last.
        resumed: What to do at the end, once θ̂ is back.
    """
    optimizer = forecast.optimizer
    is_evaluated = torch.is_grad_enabled() and not for_reading
    if is_evaluated or not forecast.backward_pending or optimizer is None:
        forecast.restore()
        return nothing
    groups = optimizer.param_groups
    params = [p for group in groups for p in group["params"] if not is_lazy(p)]
    tensors = [*params, *plain_all(params)]
    counters = list(map(_unsafe_preserve_version_counter, tensors))
    with torch.no_grad():
        hat = [p.clone() for p in plain_all(params)]
    told, forecast.interrupted = forecast.interrupted, nothing
    try:
        forecast.restore()
    finally:
        forecast.interrupted = told
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
                return
        told()

    return resume
