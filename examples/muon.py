"""Muon for the hidden matrices, AdamW for all else, both forecast.

    python examples/muon.py

The two optimizers share one model, so there are two lines: one for each.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import weightcast


def main(steps=3, epochs=8):
    """Tell apart four interleaved spirals: the accuracy after each epoch."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(2, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU()),
        *(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4)),
    )
    hidden = [model[2].weight, model[4].weight]
    rest = [p for p in model.parameters() if all(p is not q for q in hidden)]
    muon = torch.optim.Muon(hidden, lr=5e-3, adjust_lr_fn="match_rms_adamw", nesterov=False)
    adamw = torch.optim.AdamW(rest, lr=5e-3)
    weightcast.attach(model, muon, steps=steps)
    weightcast.attach(model, adamw, steps=steps)

    arm = torch.randint(4, (4096,))
    radius = torch.rand(4096).sqrt()
    angle = 6 * radius + arm * torch.pi / 2 + 0.1 * torch.randn(4096)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    batches = list(zip(points[:3584].split(64), arm[:3584].split(64), strict=True))

    accuracies = []
    for _ in range(epochs):
        model.train()
        for inputs, targets in batches:
            cross_entropy(model(inputs), targets).backward()  # all weights at θ̂
            for optimizer in (muon, adamw):
                optimizer.step()  # at θ
                optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            hits = model(points[3584:]).argmax(1) == arm[3584:]  # at θ
        accuracies.append(hits.double().mean().item())
    return accuracies


if __name__ == "__main__":
    for s in (0, 3):
        accuracies = ", ".join(f"{100 * accuracy:.0f} %" for accuracy in main(steps=s))
        print(f"accuracy after each epoch, s = {s}: {accuracies}")
