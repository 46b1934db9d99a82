# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a machine was calm while a run was measured, and which difference the run could have found."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass

from gpuckpt_report.analysis import stats
from gpuckpt_report.analysis.run import HostAnalysis, speedup

CALM, NOISY, UNKNOWN = "calm", "noisy", "not known"
# A fixed loop that takes so much longer in one of ten entries shows a machine that does other things, too.
CALIBRATION_SPREAD = 0.05
STEAL_SHARE = 0.01
# One server at a time keeps one or two processors busy; more than all of them, and somebody else does.
LOAD_SHARE = 1.0
# What a run should be able to find, as a share; `compare` holds its gate to the same.
EFFECT = 0.10
# Nobody waits for more of one lane.
SAMPLES_AT_MOST = 200
# A drift below this share is no reason to doubt a run, however sure it is.
LEAST_DRIFT = 0.05


@dataclass(frozen=True)
class Noise:
    """The grade of a host, what speaks for it in words, and what could have been found (as a share; None if nothing)."""

    grade: str
    reasons: list[str]
    drift: stats.Interval | None
    could_find: float | None
    # samples of a lane with which a tenth would have been found, as far as this run can tell
    samples_for_a_tenth: int | None = None

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        parts = [f"The machine was {self.grade}" if self.grade != UNKNOWN else "How calm the machine was is not known"]
        parts[0] += f": {', '.join(self.reasons)}." if self.reasons else "."
        if self.could_find is not None:
            found = f"A difference of {self.could_find:.0%} between two lanes would have been found (9 times of 10)"
            more = self.samples_for_a_tenth
            vain = more is not None and more > SAMPLES_AT_MOST
            needed = (
                f"more than {SAMPLES_AT_MOST} samples: measure on a calmer machine" if vain else f"about {more} samples"
            )
            parts.append(found + (f"; for 10% a lane needs {needed}." if more else "."))
        return " ".join(parts)


def judge(host: HostAnalysis) -> Noise:
    """Grade a host by the fixed loop, by load, by stolen time, and by the drift of its lanes."""
    could_find = _could_find(host)
    return dataclasses.replace(_graded(host), could_find=could_find, samples_for_a_tenth=_samples_for(host, could_find))


def grade(host: HostAnalysis) -> str:
    """The grade alone, which needs no lanes to be compared."""
    return _graded(host).grade


def _graded(host: HostAnalysis) -> Noise:
    reasons, alarms = [], []
    samples = [sample for lane in host.lanes for sample in lane.samples]
    turns = [sample.calibration_s for sample in samples if sample.calibration_s]
    loads = [sample.load_share for sample in samples if sample.load_share is not None]
    steals = [sample.steal_share for sample in samples if sample.steal_share is not None]
    known = len(turns) >= stats.LEAST_SAMPLES
    if known:
        spread = stats.quantile(turns, 0.9) / stats.median(turns) - 1
        reasons.append(f"a fixed loop between entries took up to {spread:.0%} longer")
        alarms.append(spread > CALIBRATION_SPREAD)
    if loads:
        load = stats.median(loads)
        reasons.append(f"its load was {load:.1f} for each processor")
        alarms.append(load > LOAD_SHARE)
    if steals:
        share = stats.quantile(steals, 0.9)
        reasons.append(f"other guests took up to {share:.1%} of its processors")
        alarms.append(share > STEAL_SHARE)
    trend = drift(host)
    interval = None if trend is None else trend.interval()
    if trend is not None and interval is not None:
        bounds = f"{interval.low - 1:+.0%} … {interval.high - 1:+.0%}"
        if interval.contains(1.0) or abs(math.expm1(trend.value)) < LEAST_DRIFT:
            reasons.append(f"no drift found over the run ({bounds})")
        else:
            reasons.append(f"times drifted by {math.expm1(trend.value):+.0%} over the run ({bounds})")
            alarms.append(True)
    return Noise(NOISY if any(alarms) else CALM if known else UNKNOWN, reasons, interval, None)


def drift(host: HostAnalysis) -> stats.LogEstimate | None:
    """How all lanes together changed from the first entry of the run to the last."""
    return stats.trend([group for _, group in residuals(host)])


def residuals(host: HostAnalysis) -> list[tuple[str, list[tuple[float, float]]]]:
    """Of each lane with several good samples: its kind, and (number in the run, log of seconds over the lane's median)."""
    return [
        (lane.kind, [(sample.seq, math.log(sample.value / lane.median)) for sample in lane.samples if sample.value])
        for lane in host.lanes
        if lane.median and lane.n > 1
    ]


def _could_find(host: HostAnalysis) -> float | None:
    """What comparing neighbours by their medians could have found: the middle one of all."""
    pairs: list[stats.LogEstimate | None] = []
    for lanes in host.by_server().values():
        ranked = sorted((lane for lane in lanes if lane.n >= stats.LEAST_SAMPLES), key=lambda lane: lane.median or 0)
        neighbours = itertools.pairwise(ranked)
        pairs += [speedup(slower, faster, host.comparisons).estimate for faster, slower in neighbours]
    found = [estimate.could_find(host.comparisons) for estimate in pairs if estimate is not None]
    return stats.median(found) if found else None


def _samples_for(host: HostAnalysis, could_find: float | None) -> int | None:
    """Samples of a lane for ``EFFECT``, since an error falls with the root of their number; None where there are enough."""
    if could_find is None or could_find <= EFFECT:
        return None
    fewest = min(lane.n for lane in host.lanes if lane.n >= stats.LEAST_SAMPLES)
    return math.ceil(fewest * (math.log1p(could_find) / math.log1p(EFFECT)) ** 2)
