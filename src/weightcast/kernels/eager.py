"""The kernels in plain PyTorch: for every device and dtype, and the oracle of the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from weightcast.displacement.rules import adam
from weightcast.kernels.operands import FUSED_DEVICES, Operands, Settings, alike, likened
from weightcast.tensors import TILE, StateView, tiles


def handles(p: Tensor, moments: Any) -> bool:
    """Everything."""
    return True


def step(o: Operands, s: Settings) -> None:
    """AdamW's update of θ, by torch itself, and the forecast along it."""
    if not o.sources:
        _walk(o.params, o, s, s.back)
    elif not o.sinks:
        torch._foreach_copy_(o.params, o.sources)
    theta = o.sinks or o.params
    # torch's own fused step takes every tensor for one that is laid out like its parameter
    options = {"fused": theta[0].device.type in FUSED_DEVICES, **(s.options or {})}
    if not all(
        alike(p, t)
        for p, *others in zip(theta, o.exp_avgs, o.exp_avg_sqs, strict=True)
        for t in others
    ):
        options["fused"] = None
    if s.found_inf is None or options["fused"] or not s.found_inf:
        grads = likened(o.grads, theta)
        if s.grad_scale is not None:
            grads = list(torch._foreach_div(grads, s.grad_scale.to(grads[0].device)))
        adamw(
            theta,
            grads,
            o.exp_avgs,
            o.exp_avg_sqs,
            o.max_exp_avg_sqs,
            o.counts,
            found_inf=s.found_inf if options["fused"] else None,
            amsgrad=bool(o.max_exp_avg_sqs),
            beta1=s.beta1,
            beta2=s.beta2,
            lr=s.lr,
            weight_decay=s.weight_decay,
            eps=s.eps,
            maximize=s.maximize,
            **options,
        )
    _walk(theta, o, s, -s.ahead, o.params)


def forecast(o: Operands, s: Settings) -> None:
    """θ̂ = decay·θ - ahead·Δ/γ, whether the parameters are at θ or at another θ̂."""
    if not o.sources:
        _walk(o.params, o, s, s.back)
    theta = o.sources or o.params
    if o.sinks:
        torch._foreach_copy_(o.sinks, theta)
    if not isinstance(s.decay, float) or s.decay != 1:
        theta = list(torch._foreach_mul(theta, s.decay))
    _walk(theta, o, s, -s.ahead, o.params)


def restore(o: Operands) -> None:
    """θ from `sources` to `params`, bit for bit."""
    torch._foreach_copy_(o.params, o.sources)


def _walk(
    theta: list[Tensor],
    o: Operands,
    s: Settings,
    distance: float | Tensor,
    params: list[Tensor] | None = None,
) -> None:
    """Write θ + distance·Δ/γ to the parameters, or where θ is."""
    params = theta if params is None else params
    if not isinstance(distance, Tensor) and distance == 0:
        if theta is not params:
            torch._foreach_copy_(params, theta)
        return
    group = {"lr": distance, "betas": (s.beta1, s.beta2), "eps": s.eps, "amsgrad": False}
    squares = o.max_exp_avg_sqs or o.exp_avg_sqs
    rows = list(zip(o.counts, o.exp_avgs, squares, theta, params, strict=True))
    if o.counts[0].device.type == "cpu":  # counts may differ, and the formula takes one
        for count, *tensors, p in rows:
            whole = p if p.numel() <= TILE else torch.empty_like(p)
            for m, v, true, part in tiles(*tensors, whole):
                state = {"step": count, "exp_avg": m, "exp_avg_sq": v}
                part.copy_(true + adam(StateView([state]), group))
            if whole is not p:  # one write a parameter: what interrupts finds it moved, or not
                p.copy_(whole)
        return
    view = StateView([{"step": t, "exp_avg": m, "exp_avg_sq": v} for t, m, v, *_ in rows])
    deltas = adam(view, group)
    walked = torch._foreach_add(theta, deltas.tensors if len(rows) > 1 else [deltas])
    torch._foreach_copy_(params, walked)
