# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import itertools
import statistics

import pytest

from gpuckpt_report import stats

SAMPLES = [3.1, 2.9, 3.6, 3.0, 3.3]


def test_quantiles_against_known_answers():
    assert stats.median([5, 1, 3]) == 3
    assert stats.median([4, 1, 3, 2]) == 2.5
    # rank 0.9 * 4 = 3.6 lies six tenths of the way from the fourth to the fifth sample
    assert stats.quantile([10, 20, 30, 40, 50], 0.9) == pytest.approx(46)
    assert stats.quantile([7], 0.9) == 7


def test_median_interval_against_the_exact_bootstrap_distribution():
    """With three samples all 27 resamples can be listed, and the interval must be that distribution's quantiles."""
    samples = [1.0, 2.0, 4.0]
    exact = sorted(statistics.median(draw) for draw in itertools.product(samples, repeat=3))
    # 7 of 27 medians are 1, so that both tails of 2.5 % lie within the extreme values
    assert exact.count(1.0) == 7
    assert stats.median_interval(samples) == stats.Interval(1.0, 4.0)


def test_median_interval_of_many_samples_against_order_statistics():
    """For n = 101 the 95 % interval of the median runs about from the 41st to the 61st value (binomial, p = 1/2)."""
    interval = stats.median_interval(list(range(1, 102)))
    assert interval is not None
    assert abs(interval.low - 41) <= 1
    assert abs(interval.high - 61) <= 1


def test_the_same_seed_gives_the_same_interval():
    samples = [1.0, 1.4, 2.2, 3.1, 4.7, 5.0, 5.5, 9.0]
    assert stats.ratio(samples, SAMPLES, seed=4) == stats.ratio(samples, SAMPLES, seed=4)
    assert stats.ratio(samples, SAMPLES, seed=4) != stats.ratio(samples, SAMPLES, seed=5)


def test_ratio_of_constants_is_exact():
    assert stats.ratio([6.0] * 4, [1.5] * 3) == stats.Ratio(4.0, stats.Interval(4.0, 4.0), paired=False)


def test_rounds_drawn_whole_cancel_what_slows_both():
    """Every round is twice as slow on the left, whatever the round's own speed: paired, that is certain."""
    speeds = [1.0, 5.0, 2.0, 9.0, 3.0, 7.0, 4.0]
    paired = stats.paired_ratio([(2 * speed, speed) for speed in speeds])
    assert paired.value == 2
    assert paired.interval == stats.Interval(2.0, 2.0)
    independent = stats.ratio([2 * speed for speed in speeds], speeds)
    assert independent.interval is not None
    assert independent.interval.low < 1.5 < 2.5 < independent.interval.high


def test_rounds_in_which_one_side_failed_still_count_for_the_other():
    result = stats.paired_ratio([(10, 1), (20, None), (30, 3), (None, 5), (40, 4), (50, 9)])
    assert result.value == pytest.approx(30 / 4)
    assert result.interval is not None
    assert result.interval.contains(result.value)


@pytest.mark.parametrize("few", [[1.0], [1.0, 2.0]])
def test_no_interval_from_fewer_than_three_samples(few):
    assert stats.median_interval(few) is None
    assert stats.ratio(few, SAMPLES).interval is None
    assert stats.ratio(SAMPLES, few).interval is None
    assert stats.paired_ratio([(value, value) for value in few]).interval is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.median([]),
        lambda: stats.quantile([1.0], 1.1),
        lambda: stats.ratio(SAMPLES, []),
        lambda: stats.ratio(SAMPLES, [0.0, 0.0]),
        lambda: stats.paired_ratio([(None, 1.0)]),
    ],
)
def test_impossible_questions_raise(call):
    with pytest.raises(ValueError, match=r"needs|lies between"):
        call()
