# SPDX-License-Identifier: GPL-3.0-or-later
"""Statistics on small samples: order statistics and seeded bootstrap intervals.

Nothing here knows what is measured. Intervals are percentile bootstraps: with fewer than three samples there is none,
and with few more it is a rough guide, which is why the report always shows n and every sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
LEAST_SAMPLES = 3
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
class Ratio:
    """Median of one sample over the median of another."""

    value: float
    interval: Interval | None
    paired: bool


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


def median_interval(samples: Sequence[float], seed: int = 0) -> Interval | None:
    """Bootstrap 95 % interval of the median; None with fewer than three samples."""
    if len(samples) < LEAST_SAMPLES:
        return None
    return _interval(np.median(_resample(np.asarray(samples, dtype=float), np.random.default_rng(seed)), axis=1))


def ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = 0) -> Ratio:
    """Ratio of the medians of two independent samples, with its bootstrap 95 % interval.

    :raises ValueError: if one sample is empty, or the denominator's median is not positive
    """
    value = _ratio_of_medians(numerator, denominator)
    if min(len(numerator), len(denominator)) < LEAST_SAMPLES:
        return Ratio(value, None, paired=False)
    generator = np.random.default_rng(seed)
    tops = np.median(_resample(np.asarray(numerator, dtype=float), generator), axis=1)
    bottoms = np.median(_resample(np.asarray(denominator, dtype=float), generator), axis=1)
    return Ratio(value, _interval(tops / bottoms), paired=False)


def paired_ratio(rounds: Sequence[tuple[float | None, float | None]], seed: int = 0) -> Ratio:
    """Ratio of medians of two samples taken side by side in rounds: whole rounds are drawn, so that what slowed both
    in one round does not widen the interval.

    :param rounds: (numerator, denominator) of each round; None where that one failed
    :raises ValueError: if one side has no sample, or the denominator's median is not positive
    """
    table = np.array(rounds, dtype=float).reshape(-1, 2)
    present = ~np.isnan(table)
    value = _ratio_of_medians(table[present[:, 0], 0], table[present[:, 1], 1])
    if present.sum(axis=0).min() < LEAST_SAMPLES:
        return Ratio(value, None, paired=True)
    drawn = np.random.default_rng(seed).integers(len(table), size=(RESAMPLES, len(table)))
    whole = present[drawn].any(axis=1).all(axis=1)
    medians = np.nanmedian(table[drawn[whole]], axis=1)
    return Ratio(value, _interval(medians[:, 0] / medians[:, 1]), paired=True)


def _ratio_of_medians(numerator: Sequence[float] | Array, denominator: Sequence[float] | Array) -> float:
    bottom = quantile(list(denominator), 0.5)
    if bottom <= 0:
        raise ValueError("a ratio needs a positive median below the line")
    return quantile(list(numerator), 0.5) / bottom


def _resample(samples: Array, generator: np.random.Generator) -> Array:
    return samples[generator.integers(len(samples), size=(RESAMPLES, len(samples)))]


def _interval(statistics: Array) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(statistics, [tail, 1 - tail])
    return Interval(float(low), float(high))
