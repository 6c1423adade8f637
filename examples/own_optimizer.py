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


def main(steps=1, iterations=300):
    """Learn a function of 8 numbers; the loss at first and at last."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    optimizer = Lion(model.parameters(), lr=1e-3)
    weightcast.attach(model, optimizer, steps=steps)
    x = torch.randn(256, 8)
    y = x.square().sum(1, keepdim=True)
    losses = []
    for _ in range(iterations):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


if __name__ == "__main__":
    for s in (0, 1):
        first, last = main(steps=s)
        print(f"{s} steps ahead: loss {first:.3f} at first, {last:.3f} at last")
