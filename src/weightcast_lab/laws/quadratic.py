r"""The laws of a forecast on a noisy quadratic, exactly, in closed form.

A quadratic falls apart into modes of curvature h, each with a gradient h·θ and noise ξ on top. In
one mode, gradient descent with momentum β and rate γ, forecast by s steps, is

$$m' = \beta m + (1-\beta)\,(h\,\hat\theta + \xi), \quad \theta' = \theta - \gamma m', \quad
\hat\theta = \theta - s\,\gamma m,$$

linear in (θ, Δ) with Δ = γ·m. Here k = γ·h throughout. `torch.optim.SGD` leaves the factor 1 - β
out: its `lr` is γ·(1 - β).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Numbers = float | Array


def transition(beta: float, steps: float, k: float) -> Array:
    r"""The matrix A of (θ, Δ)' = A·(θ, Δ) + noise.

    $$A = \begin{pmatrix} 1-ak & -(\beta-aks) \\ ak & \beta-aks \end{pmatrix}, \quad a = 1-\beta$$
    """
    new, kept = (1 - beta) * k, beta - (1 - beta) * k * steps
    return np.array([[1 - new, -kept], [new, kept]])


def edge(beta: float, steps: Numbers) -> Numbers:
    r"""The edge of stability: a mode shrinks as long as k = γ·h is below it, for s ≥ 0.

    $$k < \frac{2\,(1+\beta)}{(1-\beta)\,(1+2s)}$$

    The roots of z² - (1 + β - ak(1+s))·z + β - aks lie inside the unit circle until one reaches -1.
    """
    return 2 * (1 + beta) / ((1 - beta) * (1 + 2 * steps))


def damping(beta: float, steps: Numbers, k: Numbers) -> Numbers:
    r"""The damping ratio of a mode: below 1 it oscillates, at 1 and above it does not.

    $$\zeta = \frac{a\,(1+ks)}{\sqrt{ak\,(2(1+\beta)-ak(1+2s))}}, \quad a = 1-\beta$$

    It is that of w = (z - 1)/(z + 1), which takes the unit circle to the left half-plane. For slow
    modes, |z - 1| small, it is the usual ratio -ln|z| / |ln z|.
    """
    a = 1 - beta
    return a * (1 + k * steps) / np.sqrt(a * k * (2 * (1 + beta) - a * k * (1 + 2 * steps)))


def least_damping(beta: float, steps: Numbers) -> Numbers:
    r"""The damping ratio of the worst mode of all, whatever its curvature and the rate.

    $$\min_k \zeta = \frac{\sqrt{4c + (1-\beta)^2}}{1+\beta} \;\ge\; \sqrt{c},
    \quad c = s(1-\beta)$$
    """
    return np.sqrt(4 * steps * (1 - beta) + (1 - beta) ** 2) / (1 + beta)


def worst_mode(beta: float, steps: Numbers) -> Numbers:
    r"""Where the damping is least: k = (1+β) / (s(1+β) + (1-β)(1+2s))."""
    return (1 + beta) / (steps * (1 + beta) + (1 - beta) * (1 + 2 * steps))


def noise_variance(beta: float, steps: Numbers, k: Numbers) -> Numbers:
    r"""The variance of θ after many steps at a constant rate, in units of γ²·Var ξ.

    $$\frac{\mathrm{Var}\,\theta}{\gamma^2\,\mathrm{Var}\,\xi} =
    \frac{1+\beta-aks}{k\,(1+ks)\,(2(1+\beta)-ak(1+2s))}, \quad a = 1-\beta$$
    """
    a = 1 - beta
    return (1 + beta - a * k * steps) / (
        k * (1 + k * steps) * (2 * (1 + beta) - a * k * (1 + 2 * steps))
    )


def noise_ratio(beta: float, steps: Numbers, k: Numbers) -> Numbers:
    r"""How much noisier θ̂ is than θ, after many steps at a constant rate.

    $$\frac{\mathrm{Var}\,\hat\theta}{\mathrm{Var}\,\theta} =
    1 + \frac{2s(1+s)(1-\beta)\,k}{1+\beta-(1-\beta)ks}$$
    """
    a = 1 - beta
    return 1 + 2 * steps * (1 + steps) * a * k / (1 + beta - a * k * steps)
