"""What a kernel is given: the operands, and the settings of one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weightcast.tensors import plain

FUSED_DEVICES = tuple(torch.utils._foreach_utils._get_fused_kernels_supported_devices())
"""Device types on which torch has a fused AdamW, whose step counts live on the device."""


@dataclass
class Operands:
    """Lists, one entry a parameter or empty: plain tensors of one device and dtype.

    `sources`, `sinks` and the moments are float32 where the parameters are bfloat16 or float16,
    else of the parameters' dtype. All but `grads` stay what they are from step to step;
    `prepared` is what a back-end made of them, `launched` whether the last launch has run: what
    interrupts it leaves nobody else to tell.
    """

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    sources: list[Tensor] = field(default_factory=list)
    sinks: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    max_exp_avg_sqs: list[Tensor] = field(default_factory=list)
    counts: list[Tensor] = field(default_factory=list)
    prepared: Any = field(default=None, init=False)
    launched: Callable[[], bool] | None = field(default=None, init=False)


@dataclass(frozen=True)
class Settings:
    """What one pass does, in the terms of a parameter group.

    Attributes:
        lr: γ, read by `step` alone; a number, or a tensor on the parameters' device.
        beta1: β₁.
        beta2: β₂.
        eps: ε.
        weight_decay: λ of `step`, decoupled.
        decay: What weight decay leaves of θ in `forecast`, before it walks.
        back: How many times Δ/γ the parameters are ahead of θ now, where there are no `sources`.
        ahead: How many times Δ/γ they are to be ahead of θ then.
        maximize: Ascend.
        grad_scale: The gradient is divided by it (a tensor of one element).
        found_inf: Where it is not zero, nothing is updated, only moved (a tensor of one element).
        options: `eager` alone: torch's own foreach, fused and capturable, where the step must be
            its bit for bit.
    """

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float = 0.0
    decay: float | Tensor = 1.0
    back: float | Tensor = 0.0
    ahead: float | Tensor = 0.0
    maximize: bool = False
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    options: Mapping[str, Any] | None = None

    @property
    def is_joint(self) -> bool:
        """Whether `step` may divide once for two: ε² is no subnormal number, no step skipped."""
        return self.eps >= 1e-15 and self.found_inf is None


def operands_of(
    params: Sequence[Tensor],
    states: Sequence[Mapping[str, Any]],
    group: Mapping[str, Any],
    sources: Sequence[Tensor] = (),
    sinks: Sequence[Tensor] = (),
) -> Operands:
    """What moves of Adam or AdamW, all of one back-end, device and dtype; without step counts."""
    return Operands(
        params=[plain(p) for p in params],
        sources=list(sources),
        sinks=list(sinks),
        **{f"{key}s": [plain(state[key]) for state in states] for key in moments(group)},
    )


def settings_of(group: Mapping[str, Any], reach: float, decay: float | Tensor) -> Settings:
    """A forecast by `reach` displacements of Adam or AdamW."""
    beta1, beta2 = map(float, group["betas"])
    return Settings(0.0, beta1, beta2, group["eps"], decay=decay, ahead=reach * group["lr"])


def reads_count(p: Tensor, state: Mapping[str, Any]) -> bool:
    """Whether the kernels can read the state's own step count."""
    step = plain(state["step"]) if isinstance(state["step"], Tensor) else None
    return step is not None and step.dtype is torch.float32 and step.device == p.device


def count_anew(o: Operands, states: Sequence[Mapping[str, Any]]) -> None:
    """Bring the step counts up to date: the states' own, copies where kernels cannot read those."""
    if not o.counts:
        made: dict[float, Tensor] = {}
        o.counts = [_count(state["step"], o.params[0].device, made) for state in states]
    elif not reads_count(o.params[0], states[0]):
        counts = zip(o.counts, states, strict=True)
        for count, state in {id(count): (count, state) for count, state in counts}.values():
            count.fill_(state["step"])


def moments(group: Mapping[str, Any]) -> tuple[str, ...]:
    """What the state keeps of the gradients."""
    return ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else []))


def _count(step: float | Tensor, device: torch.device, made: dict[float, Tensor]) -> Tensor:
    """A step count as the kernels read it: float32, and on the device."""
    if isinstance(step, Tensor):
        step = plain(step)
        if step.device == device or step.device.type != "cpu":
            return step.to(torch.float32)
        step = step.item()
    if step not in made:
        made[step] = torch.full((), step, dtype=torch.float32, device=device)
    return made[step]


def example(device: torch.device) -> Operands:
    """To try a kernel on: a whole block and a part of one."""
    numbers = torch.arange(1.0, 6001.0, dtype=torch.float32, device="cpu").sin().view(4, 1500)
    p, g, m, v = numbers.to(device)
    count = torch.ones((), dtype=torch.float32, device=device)
    return Operands([p], [g], exp_avgs=[m], exp_avg_sqs=[v.square()], counts=[count])


def alike(p: Tensor, other: Tensor) -> bool:
    """Whether the two lie in memory in the same order without gaps."""
    if p.is_contiguous() and other.is_contiguous():
        return p.shape == other.shape
    formats = (torch.channels_last, torch.channels_last_3d)
    return p.stride() == other.stride() and any(
        p.dim() == 4 + k and p.is_contiguous(memory_format=f) for k, f in enumerate(formats)
    )


def likened(grads: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients in the dtypes and layouts of their parameters."""
    return [
        g
        if g.dtype is p.dtype and (g.stride() == stride or alike(p, g))
        else torch.empty_like(p).copy_(g)
        for g, p, stride in zip(grads, params, map(Tensor.stride, params), strict=True)
    ]
