"""Muon with a look-ahead inside its update: where vendors disagree, to be compared.

Muon averages gradients, m ← β·m + (1-β)·g, and walks along the orthogonalised average. A look-ahead
*inside* orthogonalises m + s·(m - m_before) instead of m; Nesterov's form is s = β. A forecast
(`weightcast.attach`) looks ahead *outside*: it moves the weights along the orthogonalised update.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_optimizer import Muon
from torch import Tensor


class MuonInside(Muon):
    """Muon that orthogonalises m + ahead·(m - m_before); `ahead` = momentum is Nesterov's form."""

    def __init__(self, params: Any, *, ahead: float, **options: Any) -> None:
        """All else as `pytorch_optimizer.Muon`."""
        self.ahead = ahead
        super().__init__(params, **options)

    def _momentum_updates(
        self, group: dict[str, Any], grads: list[Tensor], buffers: list[Tensor]
    ) -> list[Tensor]:
        beta = group["momentum"]
        torch._foreach_lerp_(buffers, grads, weight=1 - beta)
        # m - m_before = (g - m)·(1-β)/β with the new m
        ahead = torch._foreach_lerp(buffers, grads, weight=self.ahead * (1 - beta) / beta)
        return list(self._orthogonalize(group, list(ahead)))


class MuonNAdamW(Muon):
    """Muon with NAdamW of constant μ = β₁, in place of AdamW, for all that is no hidden matrix."""

    def _step_foreach(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        state_dict: dict[str, list[Tensor]],
        *bias_corrections: Any,
    ) -> None:
        if group["use_muon"]:
            super()._step_foreach(group, params, grads, state_dict, *bias_corrections)
            return
        (beta1, beta2), step, lr = group["betas"], group["step"], group["lr"]
        m, v = state_dict["exp_avg"], state_dict["exp_avg_sq"]
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_lerp_(m, grads, weight=1 - beta1)
        torch._foreach_lerp_(v, torch._foreach_mul(grads, grads), weight=1 - beta2)
        root = torch._foreach_sqrt(torch._foreach_div(v, 1 - beta2**step))
        torch._foreach_add_(root, group["eps"])
        for numerators, factor, correction in (
            (m, beta1, 1 - beta1 ** (step + 1)),
            (grads, 1 - beta1, 1 - beta1**step),
        ):
            torch._foreach_addcdiv_(params, numerators, root, value=-lr * factor / correction)
