"""Algorithm 1 of Guan (PAKDD 2023) in float64 NumPy, written from the paper, without torch.

A network with one hidden layer, y = W₂·tanh(W₁·x + b₁) + b₂, and the loss ½·mean(y - target)²,
differentiated by hand.
"""

from dataclasses import dataclass, field

import numpy as np

Arrays = dict[str, np.ndarray]


def loss_and_gradient(theta: Arrays, x: np.ndarray, target: np.ndarray) -> tuple[float, Arrays]:
    hidden = np.tanh(x @ theta["w1"].T + theta["b1"])
    error = hidden @ theta["w2"].T + theta["b2"] - target
    d_output = error / error.size
    d_hidden = (d_output @ theta["w2"]) * (1 - hidden**2)
    gradient = {
        "w1": d_hidden.T @ x,
        "b1": d_hidden.sum(0),
        "w2": d_output.T @ hidden,
        "b2": d_output.sum(0),
    }
    return 0.5 * float(np.mean(error**2)), gradient


@dataclass
class Group:
    """The hyper-parameters of some of the arrays."""

    names: list[str]
    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    steps: float = 1.0


@dataclass
class Algorithm1:
    """AdamW with weight prediction, exactly as the paper lists it.

    Args:
        theta: The weights, changed in place.
        groups: Their hyper-parameters.
        amsgrad: Use the largest v̂ so far.
        eps_inside_root: The paper's √(v̂ + ε) instead of torch's √v̂ + ε.
        damped: Walk Σ β₁ᵏ displacements instead of s.
        predict_weight_decay: Include (1 - γλ)ˢ in the prediction.
        delay: Iteration t applies the gradient of iteration t - delay, taken at that one's θ̂ on its
            data; those before apply none.
        clip_norm: Scale the gradient that is applied down to this norm.
    """

    theta: Arrays
    groups: list[Group]
    amsgrad: bool = False
    eps_inside_root: bool = False
    damped: bool = False
    predict_weight_decay: bool = False
    delay: int = 0
    clip_norm: float = np.inf
    past: list[tuple[Arrays, list[tuple[np.ndarray, np.ndarray]]]] = field(default_factory=list)
    t: int = 0
    m: Arrays = field(default_factory=dict)
    v: Arrays = field(default_factory=dict)
    v_max: Arrays = field(default_factory=dict)

    def direction(self, name: str, group: Group) -> np.ndarray:
        """m̂ / (√v̂ + ε), or with ε inside the root."""
        beta1, beta2 = group.betas
        m_hat = self.m[name] / (1 - beta1**self.t)
        v = self.v_max[name] if self.amsgrad else self.v[name]
        v_hat = v / (1 - beta2**self.t)
        if self.eps_inside_root:
            return m_hat / np.sqrt(v_hat + group.eps)
        return m_hat / (np.sqrt(v_hat) + group.eps)

    def predicted(self) -> Arrays:
        """θ̂, Eq. 7, from the moments after the last update; θ at the first iteration."""
        theta_hat = {name: value.copy() for name, value in self.theta.items()}
        if self.t == 0:
            return theta_hat
        for group in self.groups:
            s = group.steps
            if self.damped:
                s = sum(group.betas[0] ** k for k in range(1, round(s) + 1))
            for name in group.names:
                if self.predict_weight_decay:
                    theta_hat[name] *= (1 - group.lr * group.weight_decay) ** s
                theta_hat[name] -= s * group.lr * self.direction(name, group)
        return theta_hat

    def update(self, gradient: Arrays) -> None:
        """AdamW, Eq. 1, on the true weights."""
        self.t += 1
        for group in self.groups:
            beta1, beta2 = group.betas
            for name in group.names:
                g = gradient[name]
                zero = np.zeros_like(g)
                self.m[name] = beta1 * self.m.get(name, zero) + (1 - beta1) * g
                self.v[name] = beta2 * self.v.get(name, zero) + (1 - beta2) * g**2
                self.v_max[name] = np.maximum(self.v_max.get(name, zero), self.v[name])
                self.theta[name] *= 1 - group.lr * group.weight_decay
                self.theta[name] -= group.lr * self.direction(name, group)

    def iterate(self, micro_batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """One iteration: predict, forward and backward at θ̂, recover θ, update."""
        self.past.append((self.predicted(), micro_batches))
        if len(self.past) <= self.delay:
            return
        theta_hat, micro_batches = self.past[-1 - self.delay]
        gradients = [loss_and_gradient(theta_hat, x, target)[1] for x, target in micro_batches]
        total = {name: sum(g[name] for g in gradients) for name in self.theta}
        norm = np.sqrt(sum(np.sum(g**2) for g in total.values()))
        scale = min(1.0, self.clip_norm / (norm + 1e-6))  # torch's
        self.update({name: scale * g for name, g in total.items()})
