"""An optimizer of your own: in any loop, and in the laboratory.

weightcast compare --optimizer examples/own_optimizer.py:Lion --lr 0.001 --seeds 3 --steps 1,3
"""

import torch

import weightcast


class Lion(torch.optim.Optimizer):
    """Chen et al., "Symbolic Discovery of Optimization Algorithms" (2023), without weight decay."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                update = (beta1 * m + (1 - beta1) * p.grad).sign()
                p.sub_(group["lr"] * update)
                m.lerp_(p.grad, 1 - beta2)
                self.state[p]["update"] = update
        return loss


@weightcast.register_rule(Lion)
def lion(state, group):
    """Δ = γ·sign(...), what the last step subtracted."""
    return group["lr"] * state["update"]
