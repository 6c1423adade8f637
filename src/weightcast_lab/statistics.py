"""Means over seeds with their intervals, paired differences, steps to a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean of n values and half the width of its confidence interval.

    With fewer than two values nothing is known about the scatter: `half_width` is None.
    """

    mean: float
    half_width: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside; never for values without any scatter, which prove nothing."""
        return self.half_width is not None and abs(self.mean) > self.half_width > 0


def mean_interval(values: Sequence[float]) -> Interval | None:
    """The mean and its 95% t interval, mean ± t(n-1)·s/√n; None without values."""
    n = len(values)
    if n == 0:
        return None
    mean = float(np.mean(values))
    if n == 1:
        return Interval(mean, None, n)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
    return Interval(mean, float(quantile * np.std(values, ddof=1) / math.sqrt(n)), n)


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Interval | None:
    """The interval of the mean of `values[i] - reference[i]`, seed by seed.

    The seeds share initial weights and batches, so what they have in common cancels.
    """
    return mean_interval([a - b for a, b in zip(values, reference, strict=True)])


def steps_to_target(steps: Sequence[float], losses: Sequence[float], target: float) -> float | None:
    """After how many steps the lowest loss so far first comes down to the target.

    Linear between evaluations; None if it never does.
    """
    if losses[0] <= target:
        return float(steps[0])
    best = np.minimum.accumulate(losses)
    after = int(np.argmax(best <= target))
    if best[after] > target:
        return None
    before = after - 1
    share = (best[before] - target) / (best[before] - best[after])
    return float(steps[before] + share * (steps[after] - steps[before]))


def median_with_unreached(values: Sequence[float | None]) -> float | None:
    """The median where None stands for later than any number; None if the median is such a one.

    Leaving those out would favour a method that reaches its target only where that is easy.
    """
    if not values:
        return None
    median = float(np.median([math.inf if value is None else value for value in values]))
    return median if math.isfinite(median) else None
