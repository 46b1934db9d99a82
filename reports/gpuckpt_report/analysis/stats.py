# SPDX-License-Identifier: GPL-3.0-or-later
"""Statistics on small samples: order statistics, and intervals whose coverage test_stats.py simulates.

Nothing here knows what is measured. Below six samples there is no interval. One from the least
to the greatest of five values would hold the median in 94 % of cases only. The values are shown instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2_000
# Values of a bootstrap that are in memory at once.
DRAWN_AT_ONCE = 500_000
POWER = 0.9
LEAST_SAMPLES = 6
CONFIDENCE = 0.95

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether the value lies within, bounds included."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class LogEstimate:
    """The logarithm of a ratio, with its standard error and the degrees of freedom of that."""

    value: float
    error: float
    degrees: int

    def interval(self, comparisons: int = 1) -> Interval:
        """Student's 95 % interval of the ratio.

        :param comparisons: number of ratios that are looked at together; so many intervals hold all together with 95 %
        """
        factor = math.exp(self._limit(comparisons) * self.error)
        ratio = math.exp(self.value)
        return Interval(ratio / factor, ratio * factor)

    def could_find(self, comparisons: int = 1) -> float:
        """The smallest change, as a share such as 0.1, that nine of ten such measurements would have found."""
        return math.expm1((self._limit(comparisons) + student_quantile(POWER, self.degrees)) * self.error)

    def _limit(self, comparisons: int) -> float:
        return student_quantile(1 - (1 - CONFIDENCE) / 2 / comparisons, self.degrees)


@dataclass(frozen=True)
class Ratio:
    """Median of one sample over the median of another; without an estimate and interval where samples are too few."""

    value: float
    interval: Interval | None
    paired: bool
    estimate: LogEstimate | None = None

    @property
    def told_apart(self) -> bool:
        """Whether the samples differ for sure: there is an interval, and it does not hold 1."""
        return self.interval is not None and not self.interval.contains(1.0)


def quantile(samples: Sequence[float], q: float) -> float:
    """The q-quantile, interpolated linearly between the two nearest samples.

    :raises ValueError: without samples, or for a q outside 0..1
    """
    if len(samples) == 0:
        raise ValueError("a quantile needs at least one sample")
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
    return float(np.quantile(np.asarray(samples, dtype=float), q))


def median(samples: Sequence[float]) -> float:
    """The middle sample, or the mean of the two in the middle.

    :raises ValueError: without samples
    """
    return quantile(samples, 0.5)


def median_interval(samples: Sequence[float]) -> Interval | None:
    """95 % interval of the median, between two samples; None below six of them.

    A sample lies below the median with probability 1/2, whatever its distribution. The bounds are the innermost pair of
    order statistics that enclose the median with at least 95 % (the sign test's interval).
    """
    n = len(samples)
    if n < LEAST_SAMPLES:
        return None
    ordered = sorted(samples)
    cut = 0
    outside = 2.0**-n
    while outside + math.comb(n, cut + 1) * 2.0**-n <= (1 - CONFIDENCE) / 2:
        cut += 1
        outside += math.comb(n, cut) * 2.0**-n
    return Interval(float(ordered[cut]), float(ordered[n - 1 - cut]))


def ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = 0, comparisons: int = 1) -> Ratio:
    """Ratio of the medians of two independent samples, with its interval.

    :param comparisons: number of ratios that are looked at together; so many intervals hold all together with 95 %
    :raises ValueError: if one sample is empty, or a median is not positive
    """
    value = _ratio_of_medians(numerator, denominator)
    least = min(len(numerator), len(denominator))
    if least < LEAST_SAMPLES:
        return Ratio(value, None, paired=False)
    generator = np.random.default_rng(seed)
    tops = np.median(_resample(np.asarray(numerator, dtype=float), generator), axis=1)
    bottoms = np.median(_resample(np.asarray(denominator, dtype=float), generator), axis=1)
    return _estimated(value, tops / bottoms, least, comparisons, paired=False)


def paired_ratio(rounds: Sequence[tuple[float | None, float | None]], seed: int = 0, comparisons: int = 1) -> Ratio:
    """Ratio of medians of two samples taken side by side in rounds.

    Whole rounds are drawn, so that what slowed both in one round does not widen the interval.

    :param rounds: (numerator, denominator) of each round; None where that one failed
    :param comparisons: number of ratios that are looked at together; so many intervals hold all together with 95 %
    :raises ValueError: if one side has no sample, or a median is not positive
    """
    table = np.array(rounds, dtype=float).reshape(-1, 2)
    present = ~np.isnan(table)
    value = _ratio_of_medians(table[present[:, 0], 0], table[present[:, 1], 1])
    least = int(present.sum(axis=0).min())
    if least < LEAST_SAMPLES:
        return Ratio(value, None, paired=True)
    drawn = np.random.default_rng(seed).integers(len(table), size=(RESAMPLES, len(table)))
    whole = present[drawn].any(axis=1).all(axis=1)
    middle = np.median if present.all() else np.nanmedian
    medians = middle(table[drawn[whole]], axis=1)
    return _estimated(value, medians[:, 0] / medians[:, 1], least, comparisons, paired=True)


def clustered_ratio(ratios: Sequence[float], seed: int = 0, comparisons: int = 1) -> Ratio:
    """Median of ratios that clusters, such as hosts, yield one each; clusters are drawn, never what they are made of.

    A cluster's ratio varies from cluster to cluster with all that its few samples add, so nothing has to be drawn within.

    :param comparisons: number of ratios that are looked at together; so many intervals hold all together with 95 %
    :raises ValueError: without a ratio, or if one is not positive
    """
    if min(ratios) <= 0:
        raise ValueError("a ratio needs a positive median on both sides")
    logs = np.log(np.asarray(ratios, dtype=float))
    value = float(np.exp(np.median(logs)))
    if len(logs) < LEAST_SAMPLES:
        return Ratio(value, None, paired=True)
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // len(logs))
    drawn = [
        np.median(logs[generator.integers(len(logs), size=(min(at_once, RESAMPLES - start), len(logs)))], axis=1)
        for start in range(0, RESAMPLES, at_once)
    ]
    return _estimated(value, np.exp(np.concatenate(drawn)), len(logs), comparisons, paired=True)


def change_of_means(before: Sequence[float], after: Sequence[float]) -> LogEstimate:
    """How the mean of logarithms changed from one side to the other, judged by the spread within the sides.

    :param before: one logarithm a run, at least two
    :raises ValueError: if a side has fewer than two
    """
    if min(len(before), len(after)) < 2:
        raise ValueError("the spread between runs needs two runs of each side")
    degrees = len(before) + len(after) - 2
    squares = sum(float(np.square(np.asarray(side) - np.mean(side)).sum()) for side in (before, after))
    error = math.sqrt(squares / degrees * (1 / len(before) + 1 / len(after)))
    return LogEstimate(float(np.mean(after) - np.mean(before)), error, degrees)


def trend(groups: Sequence[Sequence[tuple[float, float]]]) -> LogEstimate | None:
    """How much logarithms changed from the first place to the last, with one line's slope for all groups.

    :param groups: (place, logarithm) of each sample; each group has a level of its own
    :returns: None with fewer than ``LEAST_SAMPLES`` samples in addition to the levels
    """
    centred = [np.asarray(group, dtype=float) - np.mean(np.asarray(group, dtype=float), axis=0) for group in groups]
    places, values = np.concatenate(centred).T if centred else np.empty((2, 0))
    degrees = len(places) - len(centred) - 1
    spread = float(np.square(places).sum())
    if degrees < LEAST_SAMPLES or spread == 0:
        return None
    slope = float((places * values).sum()) / spread
    error = math.sqrt(float(np.square(values - slope * places).sum()) / degrees / spread)
    every = [place for group in groups for place, _ in group]
    length = max(every) - min(every)
    return LogEstimate(slope * length, error * length, degrees)


@functools.cache
def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution; of the libraries only SciPy has it, 35 MB for this one number.

    :param probability: above 1/2 and below 1
    :param degrees: degrees of freedom, at least 1
    :raises ValueError: outside these limits
    """
    if not (0.5 < probability < 1 and degrees >= 1):
        raise ValueError(f"no quantile of Student's t for probability {probability} and {degrees} degrees of freedom")
    low, high = 0.0, 1.0
    while _student_cdf(high, degrees) < probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, degrees) < probability else (low, middle)
    return high


def _student_cdf(t: float, degrees: int) -> float:
    """Closed form for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4), for t >= 0."""
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = total = cosine if odd else 1.0
    for step in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (step - 1) / step
        total += term
    if odd:
        inside = 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
    else:
        inside = sine * total
    return (1 + inside) / 2


def _ratio_of_medians(numerator: Sequence[float] | Array, denominator: Sequence[float] | Array) -> float:
    top, bottom = quantile(list(numerator), 0.5), quantile(list(denominator), 0.5)
    if min(top, bottom) <= 0:
        raise ValueError("a ratio needs a positive median on both sides")
    return top / bottom


def _resample(samples: Array, generator: np.random.Generator) -> Array:
    return samples[generator.integers(len(samples), size=(RESAMPLES, len(samples)))]


def _estimated(value: float, drawn: Array, least: int, comparisons: int, paired: bool) -> Ratio:
    """Student's interval of the logarithm, with the standard error that the bootstrap gives.

    Quantiles of the bootstrap itself end at the samples. With six samples and nine lanes they named a winner among
    identical lanes in 18 of 100 runs.
    """
    estimate = LogEstimate(math.log(value), float(np.log(drawn).std(ddof=1)), least - 1)
    return Ratio(value, estimate.interval(comparisons), paired, estimate)
