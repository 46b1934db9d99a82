# SPDX-License-Identifier: GPL-3.0-or-later
"""Change detection between two runs, lane by lane."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from gpuckpt_report import stats
from gpuckpt_report.analysis import HostAnalysis, LaneResult, RunAnalysis
from gpuckpt_report.errors import ReportError
from gpuckpt_report.tables import Table
from gpuckpt_report.units import seconds

SLOWER, FASTER, SAME, UNCLEAR, BROKEN = "slower", "faster", "no change", "too few samples", "fails now"
# Changes below this share are not worth a name, however sure they are.
LEAST_CHANGE = 0.05


@dataclass(frozen=True)
class Change:
    """One lane in both runs: medians in seconds, and how many times longer it takes in the second."""

    host: str
    lane: str
    before: LaneResult
    after: LaneResult
    ratio: stats.Ratio | None
    verdict: str


def compare(first: RunAnalysis, second: RunAnalysis) -> list[Change]:
    """Compare the lanes that both runs have on the same host; two runs of one host each are compared whatever its name.

    :raises ReportError: if the runs measure different things or share no lane
    """
    if first.manifest.metric != second.manifest.metric:
        raise ReportError(
            f"{first.manifest.run_id} measures {first.metric_name}, {second.manifest.run_id} {second.metric_name}: "
            "they cannot be compared"
        )
    changes = [change for pair in _host_pairs(first, second) for change in _host_changes(*pair)]
    if not changes:
        raise ReportError(f"{first.manifest.run_id} and {second.manifest.run_id} have no host with a lane in common")
    return changes


def table(changes: Sequence[Change]) -> Table:
    """The changes as a table."""
    headings = ["lane", "host", "before s", "n", "after s", "n", "after/before", "95 % interval", "verdict"]
    return Table(headings, [_row(change) for change in changes])


def _row(change: Change) -> list[str]:
    before, after = change.before, change.after
    value = interval = "–"
    if change.ratio is not None:
        value = f"{change.ratio.value:.3f}"
        bounds = change.ratio.interval
        interval = "–" if bounds is None else f"{bounds.low:.3f} … {bounds.high:.3f}"
    row = [change.lane, change.host, seconds(before.median), _count(before), seconds(after.median), _count(after)]
    return [*row, value, interval, change.verdict]


def _count(lane: LaneResult) -> str:
    return f"{lane.n} + {lane.n_failed} failed" if lane.n_failed else str(lane.n)


def _host_pairs(first: RunAnalysis, second: RunAnalysis) -> list[tuple[HostAnalysis, HostAnalysis]]:
    if len(first.hosts) == len(second.hosts) == 1:
        return [(first.hosts[0], second.hosts[0])]
    others = {host.host: host for host in second.hosts}
    return [(host, others[host.host]) for host in first.hosts if host.host in others]


def _host_changes(first: HostAnalysis, second: HostAnalysis) -> list[Change]:
    others = {lane.name: lane for lane in second.lanes}
    return [_change(second.host, lane, others[lane.name]) for lane in first.lanes if lane.name in others]


def _change(host: str, before: LaneResult, after: LaneResult) -> Change:
    ratio = None
    if before.values and after.values:
        ratio = stats.ratio(after.values, before.values, zlib.crc32(f"{host}/{before.name}".encode()))
    return Change(host, before.name, before, after, ratio, _verdict(before, after, ratio))


def _verdict(before: LaneResult, after: LaneResult, ratio: stats.Ratio | None) -> str:
    if after.n_failed and not before.n_failed:
        return BROKEN
    if ratio is None or ratio.interval is None:
        return UNCLEAR
    if ratio.interval.contains(1.0) or abs(ratio.value - 1) < LEAST_CHANGE:
        return SAME
    return SLOWER if ratio.value > 1 else FASTER
