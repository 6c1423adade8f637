"""The laws of a forecast on a quadratic: closed forms against matrices, torch and a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_discrete_lyapunov
from torch import nn

import weightcast
from weightcast_lab.laws.network import sharpness
from weightcast_lab.laws.page import RATES, laws_table
from weightcast_lab.laws.quadratic import (
    damping,
    edge,
    least_damping,
    noise_ratio,
    noise_variance,
    transition,
    worst_mode,
)

betas = st.floats(0.05, 0.98)
ahead = st.floats(0, 12)
shares = st.floats(0.02, 0.95)
"""Of the edge of stability."""


@settings(deadline=None)  # the first example loads what it needs
@given(betas, ahead, st.floats(0.1, 1.0))
def test_the_matrix_is_what_sgd_under_attach_does(beta: float, steps: float, share: float) -> None:
    h, k = 0.7, share * edge(beta, steps) / 2
    gamma = k / h
    theta = nn.Parameter(torch.ones(1, dtype=torch.float64))
    holder = nn.Module()
    holder.theta = theta
    rate = gamma * (1 - beta)  # torch leaves 1 - β out of its momentum
    optimizer = torch.optim.SGD([theta], lr=rate, momentum=beta)
    prediction = weightcast.attach(nn.ModuleList([holder]), optimizer, steps=steps)
    state = np.array([1.0, 0.0])
    for _ in range(6):
        optimizer.zero_grad()
        with prediction.predicted():
            (h * theta.square() / 2).sum().backward()
        optimizer.step()
        state = transition(beta, steps, k) @ state
        assert theta.item() == pytest.approx(state[0], rel=1e-9, abs=1e-9)


@given(betas, ahead, st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_the_predicted_weights_are_quasi_hyperbolic(
    beta: float, steps: float, gradients: list[float]
) -> None:
    """docs/laws.md, "One family"; s = β is Nesterov's, s = β/(1-β) plain descent."""
    gamma, theta, m = 0.1, 1.0, 0.0
    hat = theta
    for g in gradients:
        expected = hat - gamma * ((beta - steps * (1 - beta)) * m + (1 + steps) * (1 - beta) * g)
        m = beta * m + (1 - beta) * g
        theta -= gamma * m
        hat = theta - steps * gamma * m
        assert hat == pytest.approx(expected, abs=1e-12)


def test_the_page_has_its_table() -> None:
    page = Path("docs/laws.md").read_text("utf-8")
    assert laws_table() in page


@given(betas, ahead)
def test_a_mode_is_stable_below_the_edge_alone(beta: float, steps: float) -> None:
    def radius(k: float) -> float:
        return max(abs(np.linalg.eigvals(transition(beta, steps, k))))

    limit = edge(beta, steps)
    assert all(radius(share * limit) < 1 for share in (0.01, 0.3, 0.7, 0.999))
    assert radius(1.001 * limit) > 1


@given(betas, st.floats(0.1, 12))
def test_the_worst_damping_is_the_least_and_at_least_the_root_of_c(
    beta: float, steps: float
) -> None:
    rates = np.geomspace(1e-6, 0.999, 2_000) * edge(beta, steps)
    least = least_damping(beta, steps)
    assert damping(beta, steps, rates).min() >= least * (1 - 1e-12)
    assert least >= np.sqrt(steps * (1 - beta))
    if worst_mode(beta, steps) < edge(beta, steps):
        assert damping(beta, steps, worst_mode(beta, steps)) == pytest.approx(least)


def test_a_slow_modes_damping_is_the_usual_ratio() -> None:
    """-ln|z| / |ln z| of its root."""
    root = np.log(np.linalg.eigvals(transition(0.99, 1.0, 0.05)).astype(complex))[0]
    assert abs(root.imag) > 0
    assert damping(0.99, 1.0, 0.05) == pytest.approx(-root.real / abs(root), rel=0.02)


@given(betas, ahead, shares)
def test_the_noise_is_the_stationary_one(beta: float, steps: float, share: float) -> None:
    """Against the covariance that scipy solves for."""
    k = share * edge(beta, steps)
    pushed = (1 - beta) * np.array([[-1.0], [1.0]])  # γ is 1
    covariance = solve_discrete_lyapunov(transition(beta, steps, k), pushed @ pushed.T)
    true = covariance[0, 0]
    predicted = true - 2 * steps * covariance[0, 1] + steps**2 * covariance[1, 1]
    assert noise_variance(beta, steps, k) == pytest.approx(true, rel=1e-6)
    assert noise_ratio(beta, steps, k) == pytest.approx(predicted / true, rel=1e-6)


@pytest.mark.parametrize("steps", RATES)
def test_a_network_sharpens_up_to_the_edge(steps: float) -> None:
    found = sharpness(steps, RATES[steps])
    assert found.curvature == pytest.approx(found.edge, rel=0.15)
