import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from weightcast_lab.statistics import (
    Interval,
    mean_interval,
    median_with_unreached,
    paired_difference,
    steps_to_target,
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
        excludes = paired_difference(list(a), list(b)).excludes_zero
        assert excludes == (stats.ttest_rel(a, b).pvalue < 0.05)
        decisions.add(excludes)
    assert decisions == {True, False}


@pytest.mark.parametrize("values", [[3.0], [1.0, 1.0], [0.0, 0.0]])
def test_values_without_scatter_prove_nothing(values):
    assert not mean_interval(values).excludes_zero


def test_pairs_must_match():
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0], [1.0])


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
