# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math

import numpy as np
import pytest

from gpuckpt_report.analysis import stats

SAMPLES = [3.1, 2.9, 3.6, 3.0, 3.3, 3.2]


def test_quantiles_against_known_answers():
    assert stats.median([5, 1, 3]) == 3
    assert stats.median([4, 1, 3, 2]) == 2.5
    # rank 0.9 * 4 = 3.6 lies six tenths of the way from the fourth to the fifth sample
    assert stats.quantile([10, 20, 30, 40, 50], 0.9) == pytest.approx(46)
    assert stats.quantile([7], 0.9) == 7


@pytest.mark.parametrize(
    ("n", "low", "high"), [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (20, 6, 15), (100, 40, 61)]
)
def test_median_interval_against_the_table_of_the_sign_test(n, low, high):
    """Ranks of the bounds as statistics books list them for 95 %."""
    assert stats.median_interval(list(range(1, n + 1))) == stats.Interval(low, high)


@pytest.mark.parametrize("n", [6, 7, 10, 20])
def test_the_interval_of_a_median_holds_it_in_95_of_100_runs(n):
    """Skewed samples, as durations are; the median of this distribution is 1 + log 2."""
    draws = 1 + np.random.default_rng(n).exponential(size=(2000, n))
    held = sum(stats.median_interval(list(draw)).contains(1 + math.log(2)) for draw in draws)
    assert held / len(draws) >= 0.94


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [6, 10])
def test_the_interval_of_a_ratio_holds_it_in_95_of_100_runs(n, paired):
    draws = 1 + np.random.default_rng(n).exponential(size=(400, 2, n))
    held = 0
    for top, bottom in draws:
        result = stats.paired_ratio(list(zip(3 * top, bottom))) if paired else stats.ratio(3 * top, bottom)
        held += result.interval.contains(3.0)
    assert held / len(draws) >= 0.94


@pytest.mark.parametrize(
    ("degrees", "probability", "expected"),
    [
        (1, 0.975, 12.7062),
        (2, 0.975, 4.3027),
        (5, 0.975, 2.5706),
        (9, 0.975, 2.2622),
        (10, 0.995, 3.1693),
        (30, 0.9, 1.3104),
        (101, 0.975, 1.9837),
    ],
)
def test_quantiles_of_students_t_against_printed_tables(degrees, probability, expected):
    assert stats.student_quantile(probability, degrees) == pytest.approx(expected, abs=6e-5)


def test_the_same_seed_gives_the_same_interval():
    samples = [1.0, 1.4, 2.2, 3.1, 4.7, 5.0, 5.5, 9.0]
    assert stats.ratio(samples, SAMPLES, seed=4) == stats.ratio(samples, SAMPLES, seed=4)
    assert stats.ratio(samples, SAMPLES, seed=4) != stats.ratio(samples, SAMPLES, seed=5)


def test_more_comparisons_need_a_wider_interval():
    samples = [1.0, 1.4, 2.2, 3.1, 4.7, 5.0, 5.5, 9.0]
    one, many = (stats.ratio(samples, SAMPLES, comparisons=count).interval for count in (1, 28))
    assert many.low < one.low < one.high < many.high


def test_ratio_of_constants_is_exact():
    result = stats.ratio([6.0] * 7, [1.5] * 6)
    assert (result.value, result.interval.low, result.interval.high) == pytest.approx((4.0, 4.0, 4.0))
    assert result.told_apart


def test_rounds_drawn_whole_cancel_what_slows_both():
    """Every round is twice as slow on the left, whatever the round's own speed: paired, that is certain."""
    speeds = [1.0, 5.0, 2.0, 9.0, 3.0, 7.0, 4.0]
    paired = stats.paired_ratio([(2 * speed, speed) for speed in speeds])
    assert (paired.value, paired.interval.low, paired.interval.high) == pytest.approx((2.0, 2.0, 2.0))
    independent = stats.ratio([2 * speed for speed in speeds], speeds)
    assert independent.interval.low < 1.5 < 2.5 < independent.interval.high


def test_rounds_in_which_one_side_failed_still_count_for_the_other():
    rounds = [(10, 1), (20, None), (30, 3), (None, 5), (40, 4), (50, 9), (30, 3), (35, 4), (40, 5)]
    result = stats.paired_ratio(rounds)
    assert result.value == pytest.approx(32.5 / 4)
    assert result.interval.contains(result.value)


@pytest.mark.parametrize("few", [[1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
def test_no_interval_from_fewer_than_six_samples(few):
    assert stats.median_interval(few) is None
    assert stats.ratio(few, SAMPLES).interval is None
    assert stats.ratio(SAMPLES, few).interval is None
    assert not stats.ratio(SAMPLES, few).told_apart
    assert stats.paired_ratio([(value, value) for value in few]).interval is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.median([]),
        lambda: stats.quantile([1.0], 1.1),
        lambda: stats.ratio(SAMPLES, []),
        lambda: stats.ratio(SAMPLES, [0.0, 0.0]),
        lambda: stats.paired_ratio([(None, 1.0)]),
        lambda: stats.student_quantile(0.4, 3),
        lambda: stats.student_quantile(0.9, 0),
    ],
)
def test_impossible_questions_raise(call):
    with pytest.raises(ValueError, match=r"needs|lies between|no quantile"):
        call()
