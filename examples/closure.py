"""A closure: `optimizer.step(closure)` evaluates it at θ̂ and updates θ.

python examples/closure.py
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import weightcast


def main(steps=0.9, iterations=200):
    """Learn which of two numbers is larger; the loss of every iteration."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    # s = momentum: this very loop is Nesterov's method
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    weightcast.attach(model, optimizer, steps=steps)
    x = torch.randn(256, 2)
    classes = x.argmax(1)

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), classes)
        loss.backward()
        return loss

    return [optimizer.step(closure).item() for _ in range(iterations)]


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
