"""Means over seeds with their intervals, paired differences, steps to a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95

NO_SCATTER = 1e-3
"""Intervals narrower than this part of the mean are of equal values and their rounding: results are
kept with seven digits."""


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
        return self.half_width is not None and not self.is_tie and abs(self.mean) > self.half_width

    @property
    def is_tie(self) -> bool:
        """Whether the values are equal, but for rounding."""
        return self.half_width is not None and self.half_width <= NO_SCATTER * abs(self.mean)


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


def stratified(groups: Sequence[Sequence[float]]) -> tuple[Interval, float] | None:
    """The mean of the groups' means with its 95% t interval, and the p value that it is zero.

    Groups may differ in mean and scatter: its variance is the sum of theirs over the square of
    their number, with Satterthwaite's degrees of freedom. None without groups; groups of fewer than
    two values are left out.
    """
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return None
    mean = float(np.mean([np.mean(group) for group in groups]))
    n, (error, freedom) = sum(map(len, groups)), standard_error(groups)
    if error == 0:
        return Interval(mean, 0.0, n), 1.0
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    interval = Interval(mean, quantile * error, n)
    p = 1.0 if interval.is_tie else 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return interval, p


def standard_error(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Of the mean of the groups' means, of two values and more each, and its degrees of freedom.

    Satterthwaite's; infinite where nothing scatters.
    """
    parts = [float(np.var(group, ddof=1)) / len(group) for group in groups]
    variance = sum(parts)
    if variance == 0:
        return 0.0, math.inf
    freedom = 1 / sum(
        (part / variance) ** 2 / (len(group) - 1) for part, group in zip(parts, groups, strict=True)
    )
    return math.sqrt(variance) / len(groups), freedom


def p_value(values: Sequence[float]) -> float:
    """The p value of the two-sided t test that the mean of such values is zero.

    1 for fewer than two values, and for values without any scatter, which prove nothing.
    """
    found = stratified([values])
    return 1.0 if found is None else found[1]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values, corrected for being one family (Holm 1979): their familywise error is bounded.

    The smallest is multiplied by how many there are, the next by one less, and so on; none comes
    out below one that was smaller.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, position in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = largest
    return corrected


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


@dataclass(frozen=True)
class MedianInterval:
    """A median and the order statistics between which the true one lies; None is "never"."""

    median: float | None
    low: float | None
    high: float | None
    confidence: float


def median_interval(values: Sequence[float | None]) -> MedianInterval | None:
    """The median where None stands for later than any number, with an interval of the sign test.

    It supposes nothing about the values' distribution. Its ends are the innermost order statistics,
    the k-th lowest and highest, between which the true median lies with 95% confidence; with fewer
    than six values these do not exist: the range is given, with its confidence. None without
    values.
    """
    n = len(values)
    if n == 0:
        return None
    ordered = sorted(math.inf if value is None else value for value in values)
    outside = 0
    while outside + 1 <= (n - 1) // 2 and _coverage(n, outside + 1) >= CONFIDENCE:
        outside += 1
    low, high = ordered[outside], ordered[n - 1 - outside]
    return MedianInterval(
        median_with_unreached(values),
        low if math.isfinite(low) else None,
        high if math.isfinite(high) else None,
        _coverage(n, outside),
    )


def _coverage(n: int, outside: int) -> float:
    """The confidence that the order statistics with so many outside on either side enclose it."""
    return 1 - 2 * float(stats.binom.cdf(outside, n, 0.5))
