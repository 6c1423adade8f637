"""An asynchronous pipeline in one process: float64 NumPy, differentiated by hand, without torch.

The network is a chain y = act(W·x + b) with the loss ½·mean(y - target)², act = tanh in all layers
but the last. A stage is some of its layers and has an AdamW, or SGD with momentum, of its own.
"""

from dataclasses import dataclass, field

import numpy as np

Layer = tuple[np.ndarray, np.ndarray]


@dataclass
class Stage:
    """Layers with an optimizer, and all versions that their weights have had."""

    layers: list[Layer]
    optimizer: str
    lr: float
    weight_decay: float
    t: int = 0
    m: list[np.ndarray] = field(default_factory=list)
    v: list[np.ndarray] = field(default_factory=list)
    update: list[np.ndarray] = field(default_factory=list)
    versions: list[list[Layer]] = field(default_factory=list)

    def arrays(self) -> list[np.ndarray]:
        return [array for layer in self.layers for array in layer]

    def ahead(self, steps: float) -> list[Layer]:
        """θ - s·Δ, with Δ the last update; θ before the first."""
        moved = [a.copy() for a in self.arrays()]
        if self.t:
            moved = [a - steps * u for a, u in zip(moved, self.update, strict=True)]
        return list(zip(moved[::2], moved[1::2], strict=True))

    def step(self, gradients: list[np.ndarray]) -> None:
        self.t += 1
        arrays = self.arrays()
        if self.t == 1:
            self.m, self.v = ([np.zeros_like(a) for a in arrays] for _ in range(2))
        if self.optimizer == "sgd":
            self.m = [0.9 * m + g for m, g in zip(self.m, gradients, strict=True)]
            self.update = [self.lr * m for m in self.m]
        else:
            self.m = [0.9 * m + 0.1 * g for m, g in zip(self.m, gradients, strict=True)]
            self.v = [0.999 * v + 0.001 * g**2 for v, g in zip(self.v, gradients, strict=True)]
            self.update = [
                self.lr * (m / (1 - 0.9**self.t)) / (np.sqrt(v / (1 - 0.999**self.t)) + 1e-8)
                for m, v in zip(self.m, self.v, strict=True)
            ]
            arrays = [a * (1 - self.lr * self.weight_decay) for a in arrays]
        moved = [a - u for a, u in zip(arrays, self.update, strict=True)]
        self.layers = list(zip(moved[::2], moved[1::2], strict=True))


def simulate(
    stages: list[Stage],
    batches: list[tuple[np.ndarray, np.ndarray]],
    predicted: bool,
    stash: bool,
    beyond: bool,
) -> list[float]:
    """Batches from an empty pipeline until it is empty again; the loss of each.

    Batch i goes forward in stage r after max(0, i - D) of these batches' updates, D = P - 1 - r,
    and is the i-th to be applied; its forecast looks from the one to the other.
    """
    last, losses = len(stages) - 1, []
    forwards: list[list[list[Layer]]] = [[] for _ in stages]  # of each stage, by batch

    def prepare(r: int, version: int) -> None:
        """The weights of all forwards that begin at this version."""
        delay = last - r
        extra = r // 2 if beyond else 0
        while len(forwards[r]) < len(batches):
            i = len(forwards[r])
            if max(0, i - delay) != version:
                return
            forwards[r].append(stages[r].ahead((min(i, delay) + extra) if predicted else 0))

    for r in range(len(stages)):
        prepare(r, 0)
    for i, (x, target) in enumerate(batches):
        seen: list[tuple[np.ndarray, np.ndarray]] = []  # input and output of every layer
        chain = [layer for r in range(len(stages)) for layer in forwards[r][i]]
        for n, (w, b) in enumerate(chain):
            y = x @ w.T + b
            if n < len(chain) - 1:
                y = np.tanh(y)
            seen.append((x, y))
            x = y
        error = x - target
        losses.append(0.5 * float(np.mean(error**2)))
        d_y, n = error / error.size, len(chain) - 1
        for r in reversed(range(len(stages))):
            extra = r // 2 if beyond else 0
            back = forwards[r][i] if stash else stages[r].ahead(extra if predicted else 0)
            gradients: list[np.ndarray] = []
            for w, _ in reversed(back):
                x, y = seen[n]
                d_z = d_y if n == len(chain) - 1 else d_y * (1 - y**2)
                gradients = [d_z.T @ x, d_z.sum(0), *gradients]
                d_y, n = d_z @ w, n - 1
            stages[r].step(gradients)
            prepare(r, i + 1)
    return losses
