# SPDX-License-Identifier: GPL-3.0-or-later
"""The bill of a start: how fast its server answers under load, at once and later, against one that was started cold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuckpt_report.analysis import stats
from gpuckpt_report.records.schema import Bill, Record

if TYPE_CHECKING:
    from gpuckpt_report.analysis.run import HostAnalysis, LaneResult


@dataclass(frozen=True)
class BillSample:
    """One batch of requests to a server: which round, when it was asked for and sent (seconds after the start).

    ``tokens_per_s`` counts the tokens of all requests over the time from the first request to the last token. ``token_s`` is
    the median over the requests of the time from token to token, first token left out. ``requests`` were under way at a
    time, ``tokens`` is the sum over all.
    """

    round: int
    asked_s: float
    at_s: float
    tokens_per_s: float
    token_s: float | None
    requests: int
    tokens: int


@dataclass(frozen=True)
class Figure:
    """One figure of a lane at one moment: its samples, and their ratio to those of the cold start of the same server."""

    values: list[float]
    against_cold: stats.Ratio | None

    @property
    def median(self) -> float | None:
        """The median, None without a sample."""
        return stats.median(self.values) if self.values else None


FIGURES = ("tokens_per_s", "token_s")


def samples(records: Iterable[Record]) -> dict[str, list[BillSample]]:
    """Samples of each lane; records that are no ok probe of a bill are passed over."""
    found: dict[str, list[BillSample]] = {}
    for record in records:
        one = sample(record)
        if one is not None:
            found.setdefault(record.lane, []).append(one)
    return found


def sample(record: Record) -> BillSample | None:
    """What a record says of a server under load; None if it is no ok probe of a bill."""
    if record.kind != "probe" or record.status != "ok" or record.bill is None:
        return None
    return _sample(record, record.bill)


def _sample(record: Record, part: Bill) -> BillSample:
    sent = [(request.requested_s or 0.0, request) for request in record.requests]
    wall_s = max(at + request.duration_s for at, request in sent) - min(at for at, _ in sent)
    tokens = sum(request.tokens for request in record.requests)
    gaps = [
        (request.duration_s - request.ttft_s) / (request.tokens - 1)
        for request in record.requests
        if request.tokens > 1
    ]
    return BillSample(
        round=record.iteration,
        asked_s=part.asked_s or 0.0,
        at_s=part.at_s or 0.0,
        tokens_per_s=tokens / wall_s,
        token_s=stats.median(gaps) if gaps else None,
        requests=part.concurrency or len(record.requests),
        tokens=tokens,
    )


def moments(host: HostAnalysis) -> list[float]:
    """The moments that were asked for on a host, in seconds after the start."""
    return sorted({sample.asked_s for lane in host.lanes for sample in lane.bill})


def figure(host: HostAnalysis, lane: LaneResult, moment: float, name: str) -> Figure:
    """A figure of a lane at a moment; compared from ``stats.LEAST_SAMPLES`` rounds on, in pairs of the same round.

    :param name: one of ``FIGURES``
    """
    mine = _by_round(lane, moment, name)
    cold = cold_start(host.lanes, lane)
    values = [value for value in mine.values() if value is not None]
    if cold is None or cold is lane:
        return Figure(values, None)
    theirs = _by_round(cold, moment, name)
    least = min(sum(value is not None for value in side.values()) for side in (mine, theirs))
    if least < stats.LEAST_SAMPLES:
        return Figure(values, None)
    rounds = [(mine.get(number), theirs.get(number)) for number in sorted({*mine, *theirs})]
    return Figure(values, stats.paired_ratio(rounds, comparisons=_comparisons(host)))


def cold_start(lanes: Sequence[LaneResult], lane: LaneResult) -> LaneResult | None:
    """The lane that starts the same server cold; None where none does."""
    overrides = lane.lane.server if lane.lane is not None else {}
    return next(
        (other for other in lanes if other.kind == "cold" and (other.lane.server if other.lane else {}) == overrides),
        None,
    )


def _by_round(lane: LaneResult, moment: float, name: str) -> dict[int, float | None]:
    return {sample.round: getattr(sample, name) for sample in lane.bill if sample.asked_s == moment}


def _comparisons(host: HostAnalysis) -> int:
    """Ratios that stand in the tables of a host together."""
    compared = sum(bool(lane.bill) and cold_start(host.lanes, lane) not in (None, lane) for lane in host.lanes)
    return max(1, compared * len(moments(host)) * len(FIGURES))
