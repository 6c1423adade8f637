import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from weightcast_lab.results.statistics import (
    Interval,
    MedianInterval,
    holm,
    mean_interval,
    median_interval,
    median_with_unreached,
    p_value,
    steps_to_target,
    stratified,
)

NUMBERS = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def test_interval_of_known_numbers():
    # t quantile of 2 degrees of freedom from a printed table
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.half_width == pytest.approx(4.302653 * 1 / math.sqrt(3), rel=1e-6)
    assert interval.n == 3


@given(NUMBERS)
def test_interval_is_scipys(values):
    interval = mean_interval(values)
    if np.std(values) > 1e-6:
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert interval.mean - interval.half_width == pytest.approx(low, abs=1e-8)
        assert interval.mean + interval.half_width == pytest.approx(high, abs=1e-8)


def test_one_value_has_no_interval_and_none_has_no_mean():
    assert mean_interval([7.0]) == Interval(7.0, None, 1)
    assert mean_interval([]) is None


def test_excludes_zero_agrees_with_the_paired_t_test():
    generator = np.random.default_rng(0)
    decisions = set()
    for shift in np.linspace(-2, 2, 41):
        a, b = generator.normal(shift, 1, 5), generator.normal(0, 1, 5)
        excludes = mean_interval(list(a - b)).excludes_zero
        assert excludes == (stats.ttest_rel(a, b).pvalue < 0.05)
        decisions.add(excludes)
    assert decisions == {True, False}


@pytest.mark.parametrize(
    "values",
    [
        [3.0],
        [1.0, 1.0],
        [0.0, 0.0],
        3 * [0.1],
        10 * [0.3],
        # one image of 597 more in every seed, of accuracies that are kept with seven digits
        [97.98995 - 97.82245, 98.15745 - 97.98995, 98.49247 - 98.32496],
    ],
)
def test_values_without_scatter_prove_nothing(values):
    assert not mean_interval(values).excludes_zero
    assert p_value(values) == 1.0


@pytest.mark.parametrize(
    ("losses", "target", "expected"),
    [
        ([4, 3, 1], 2, 15),  # half way between 3 and 1
        ([4, 2, 3, 1], 2, 10),  # reached exactly, left again
        ([4, 2, 3, 1], 1.5, 25),  # the best so far is 2, so half way from 2 to 1
        ([4, 3], 4, 0),
        ([4, 3], 9, 0),
        ([4, 3, 3.5], 2.9, None),
    ],
)
def test_steps_to_target(losses, target, expected):
    assert steps_to_target(range(0, 10 * len(losses), 10), losses, target) == expected


EIGHTHS = st.integers(-800, 800).map(lambda n: n / 8)  # differences do not underflow


@given(st.lists(EIGHTHS, min_size=2, max_size=12), EIGHTHS)
def test_steps_to_target_is_where_the_best_so_far_crosses(losses, target):
    steps = list(range(len(losses)))
    best = [min(losses[: n + 1]) for n in steps]
    found = steps_to_target(steps, losses, target)
    if found is None:
        assert best[-1] > target
    elif found > 0:
        assert np.interp(found, steps, best) == pytest.approx(target, abs=1e-6)
        assert best[math.ceil(found) - 1] > target
    else:
        assert losses[0] <= target


def test_what_never_arrives_is_later_than_all_that_does() -> None:
    assert median_with_unreached([0.5, 0.9, None]) == 0.9
    assert median_with_unreached([None, 0.5, 0.7]) == 0.7
    assert median_with_unreached([0.4, 0.6]) == pytest.approx(0.5)
    assert median_with_unreached([0.4, None]) is None
    assert median_with_unreached([None, None, 0.1]) is None
    assert median_with_unreached([]) is None


def test_holm_by_hand():
    # Holm's own example has steps like these: .01·4, .03·3 held up by no earlier one, ...
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(values):
    corrected = holm(values)
    for p, q in zip(values, corrected, strict=True):
        assert p <= q <= min(1.0, len(values) * p) + 1e-12 or q == max(corrected)
        assert q >= p
    assert min(corrected) == pytest.approx(min(1.0, len(values) * min(values)))
    order = np.argsort(values, kind="stable")
    assert all(np.diff(np.array(corrected)[order]) >= 0)


@given(NUMBERS)
def test_p_values_are_those_of_scipy_and_agree_with_the_interval(values):
    p = p_value(values)
    interval = mean_interval(values)
    if interval.half_width <= 1e-3 * abs(interval.mean):  # equal values and their rounding
        assert p == 1.0
        assert not interval.excludes_zero
        return
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nearly identical values
        assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-6, abs=1e-12)
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == interval.excludes_zero


def test_one_value_proves_nothing():
    assert p_value([3.0]) == p_value([]) == 1.0


def test_one_stratum_is_the_t_test():
    values = [0.1, 0.4, 0.35, 0.6]
    interval, p = stratified([values])
    plain = mean_interval(values)
    assert interval.mean == pytest.approx(plain.mean)
    assert interval.half_width == pytest.approx(plain.half_width)
    assert p == pytest.approx(p_value(values))


def test_strata_of_different_means_and_scatter():
    """Two strata: half of Welch's comparison of one with the other's negative."""
    a, b = [1.0, 1.2, 0.9, 1.4], [0.2, 0.8, 0.3]
    interval, p = stratified([a, b])
    welch = stats.ttest_ind(a, [-x for x in b], equal_var=False)
    assert p == pytest.approx(welch.pvalue)
    ends = welch.confidence_interval(0.95)
    assert interval.mean == pytest.approx((ends.low + ends.high) / 4)
    assert interval.half_width == pytest.approx((ends.high - ends.low) / 4)
    assert interval.n == 7


def test_strata_that_say_nothing():
    assert stratified([]) is None
    assert stratified([[1.0]]) is None
    assert stratified([[1.0], [1.0, 2.0]]) == stratified([[1.0, 2.0]])
    interval, p = stratified([[1.0, 1.0]])
    assert (interval.mean, interval.half_width, p) == (1.0, 0.0, 1.0)


def test_the_median_lies_between_order_statistics():
    """Of 5 values only the range, at 1 - 2/2^5; of 10 the second to the ninth (printed tables)."""
    assert median_interval([0.5, 0.1, 0.3, 0.2, 0.4]) == MedianInterval(0.3, 0.1, 0.5, 0.9375)
    ten = median_interval(list(range(10)))
    assert (ten.low, ten.high) == (1, 8)
    assert ten.confidence == pytest.approx(0.9785, abs=1e-4)
    assert median_interval([7.0]) == MedianInterval(7.0, 7.0, 7.0, 0.0)
    assert median_interval([]) is None


def test_what_is_never_reached_is_the_upper_end():
    found = median_interval([0.5, None, 0.3])
    assert (found.median, found.low, found.high) == (0.5, 0.3, None)
    assert median_interval([None, None, 0.3]).median is None
    assert median_interval([None]).low is None


def test_the_interval_of_the_median_covers_it_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        found = median_interval(list(random.exponential(size=9)))
        covered += found.low <= np.log(2) <= found.high
    assert covered / 2000 == pytest.approx(found.confidence, abs=0.01)
    assert found.confidence >= 0.95
