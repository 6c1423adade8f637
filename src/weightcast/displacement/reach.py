"""How far to walk along the displacement: s, or what is asked for in its place."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from torch import Tensor

from weightcast.displacement.rules import OBSERVED_RULE, Group, Rule, rate
from weightcast.errors import InvalidArgumentError, InvalidTypeError

STEPS = "prediction_steps"
"""Group key: s of the group alone."""

MAX_STEPS = 100.0
"""Largest |steps|: the forecast extrapolates one update and is useful for a few steps only."""


def checked_steps(value: Any, name: str, damped: bool) -> float:
    """A number of steps to look ahead, as a float.

    Raises:
        InvalidTypeError: it is not a number.
        InvalidArgumentError: it is NaN, infinite (unless damped) or beyond ±100.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidTypeError(f"{name} must be a number, got {value!r}.")
    steps = float(value)
    if math.isnan(steps) or (abs(steps) > MAX_STEPS and not (damped and math.isinf(steps))):
        raise InvalidArgumentError(
            f"{name} must be a number of optimizer steps between -{MAX_STEPS:g} and "
            f"{MAX_STEPS:g} (1 to 3 is usual), got {value!r}."
        )
    return steps


def take_over_steps(groups: list[Group]) -> None:
    """What all groups name alike is none of their own, and gives way to what is set for all.

    So it is in a checkpoint of `weightcast.AdamW`.
    """
    named = [group.get(STEPS) for group in groups]
    if all(steps is not None and steps == named[0] for steps in named):
        for group in groups:
            del group[STEPS]


def reach(group: Group, steps: float, damped: bool) -> float:
    """How many displacements to walk in this group; its own `"prediction_steps"` wins.

    Raises:
        InvalidArgumentError, InvalidTypeError: as `checked_steps`, `damped_steps`.
    """
    own = group.get(STEPS)
    if own is not None:
        steps = checked_steps(own, "a group's prediction_steps", damped)
    return damped_steps(steps, group) if damped else steps


def settings_of_groups(groups: list[Group], steps: float, damped: bool) -> list[Any]:
    """What a prediction depends on besides the optimizer's state."""
    rates = [group.get("lr") for group in groups]
    versions = [(id(r), r._version) if isinstance(r, Tensor) else r for r in rates]
    return [*(reach(group, steps, damped) for group in groups), *versions]


def damped_steps(steps: float, group: Group) -> float:
    """The displacements that momentum alone would still walk in `steps` steps: Σ β₁ᵏ, k = 1..s.

    With no further gradient the k-th next displacement is about β₁ᵏ·Δ. The closed form
    β₁(1 - β₁ˢ)/(1 - β₁) holds for fractional s; s = ∞ gives β₁/(1 - β₁).

    Raises:
        InvalidArgumentError: the group has neither `betas` nor `momentum`.
    """
    if "betas" not in group and "momentum" not in group:
        raise InvalidArgumentError(
            "damped=True needs an optimizer with betas or momentum; this parameter group has "
            f"only {sorted(key for key in group if key != 'params')}."
        )
    beta = float(group["betas"][0] if "betas" in group else group["momentum"])
    total = steps if beta == 1 else beta * (1 - beta ** abs(steps)) / (1 - beta)
    return math.copysign(total, steps)


def decay_factor(rule: Rule, group: Group, steps: float) -> Any:
    """What `steps` steps of decoupled weight decay leave of a weight: (1 - γλ)ˢ."""
    decay = group.get("weight_decay", 0.0)
    is_decoupled = group.get("decoupled_weight_decay", rule.decoupled)
    if not decay or not is_decoupled or rule is OBSERVED_RULE:  # what was seen includes it
        return 1.0
    return (1 - rate(group) * decay) ** steps
