# SPDX-License-Identifier: GPL-3.0-or-later
"""Many hosts as one: how a lane's times lie over hosts, how far hosts differ, and which of them stand out.

A host counts once, with the median of its good starts. Starts of one host share its hardware and are no independent
samples of a fleet. Intervals are therefore made of one number a host, and there is none below six hosts.
Only what this needs of each record is kept, so a thousand hosts fit into memory.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuckpt_report.analysis import noise, stats
from gpuckpt_report.analysis.run import (
    HostAnalysis,
    LaneResult,
    RunOfHosts,
    is_measured,
    lane_order,
    loss,
    missing_of,
    pairs,
    sample_of,
)
from gpuckpt_report.errors import ReportError
from gpuckpt_report.records.schema import Record, RunManifest
from gpuckpt_report.records.store import RunFolder

# A host is no outlier below this, however sure it is that it differs.
LEAST_DEVIATION = 0.1
# One failure among thousands of starts does not keep a lane from being the best; it is told with it.
FAILURES_TOLERATED = 0.01
# From the median absolute deviation to a standard deviation, if values are normal.
NORMAL_FROM_MAD = 1.4826
BRIEF = {"host", "seq", "lane", "kind", "iteration", "warmup", "reason", "message"}


@dataclass(frozen=True)
class Outlier:
    """A host whose median of a lane is so many times the fleet's."""

    host: str
    lane: str
    ratio: float


@dataclass(frozen=True)
class Spread:
    """Standard deviations as shares of the time: from host to host, and from start to start of one host.

    None where there are too few hosts or starts to tell.
    """

    between: float | None
    within: float | None


@dataclass
class FleetLane:
    """One lane over hosts. ``medians`` holds a host's median, in seconds, for each host with a good start."""

    name: str
    kind: str
    is_baseline: bool
    medians: dict[str, float]
    n: int
    n_failed: int
    silent: list[str]
    spread: Spread
    outliers: list[Outlier]
    median: float | None = None
    interval: stats.Interval | None = None
    speedup: stats.Ratio | None = None
    server: str | None = None

    @property
    def values(self) -> list[float]:
        """The medians of the hosts, least first."""
        return sorted(self.medians.values())

    @property
    def hosts(self) -> int:
        """Number of hosts with a good start."""
        return len(self.medians)

    @property
    def failed_share(self) -> float:
        """Share of the starts that failed."""
        return self.n_failed / max(1, self.n + self.n_failed)


@dataclass(frozen=True)
class Finding:
    """Why a host needs a look, the gravest first: 0 it is lost, 1 a lane never passed, 2 slow, 3 failures, 4 fast."""

    host: str
    rank: int
    weight: float
    text: str


@dataclass
class Fleet(RunOfHosts):
    """Everything a page about many hosts says. ``hosts`` have lanes with samples and medians, and no more."""

    lanes: list[FleetLane]
    phase_names: list[str]
    grades: dict[str, str] = field(default_factory=dict)

    @property
    def comparisons(self) -> int:
        """Pairs of lanes that can be compared: for so many ratios the intervals hold together."""
        return pairs(lane.server for lane in self.lanes if lane.hosts >= stats.LEAST_SAMPLES)


def has_many_hosts(manifest: RunManifest) -> bool:
    """Whether a run is a fleet's."""
    return len({*manifest.hosts, *manifest.hosts_asked}) > 1


def survey(run: RunFolder) -> Fleet:
    """Reads a run's records once and says what its hosts have in common, and where they differ.

    :raises ReportError: if the run has no records yet
    """
    manifest = run.manifest()
    tallies = {host: _Tally(host) for host in (*manifest.hosts, *manifest.hosts_asked)}
    phase_names: dict[str, None] = {}
    fake, empty = manifest.fake, True
    for record in run.stream():
        fake, empty = fake or record.fake, False
        phase_names.update(dict.fromkeys(record.phases))
        if record.host not in tallies:
            tallies[record.host] = _Tally(record.host)
        tallies[record.host].add(record, manifest)
    if empty:
        raise ReportError(f"run {manifest.run_id} has no records yet: `gpuckpt ingest` adds them")
    hosts = [tallies[host].result(manifest) for host in sorted(tallies)]
    return of_hosts(manifest, hosts, fake, list(phase_names))


def of_hosts(
    manifest: RunManifest, hosts: Sequence[HostAnalysis], fake: bool, phase_names: Sequence[str] = ()
) -> Fleet:
    """The fleet of some hosts, each with its lanes' samples and medians."""
    by_lane: dict[str, dict[str, LaneResult]] = {}
    for host in hosts:
        for lane in host.lanes:
            by_lane.setdefault(lane.name, {})[host.host] = lane
    names = lane_order(manifest, by_lane)
    lanes = [_lane(name, by_lane[name], len(names)) for name in names]
    fleet = Fleet(manifest, list(hosts), fake, lanes, list(phase_names))
    fleet.grades = {host.host: noise.grade(host) for host in hosts}
    baselines = {lane.server: lane for lane in lanes if lane.is_baseline}
    for one in lanes:
        baseline = baselines.get(one.server)
        if baseline is not None and one is not baseline:
            one.speedup = speedup(baseline, one, fleet.comparisons)
    return fleet


class _Tally:
    """What is kept of one host's records while they stream by."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.lanes: dict[str, LaneResult] = {}
        self.failures: list[dict[str, Any]] = []
        self.empty = True

    def add(self, record: Record, manifest: RunManifest) -> None:
        self.empty = False
        if record.status == "failed":
            self.failures.append(record.model_dump(mode="json", include=BRIEF))
        if not is_measured(record):
            return
        lane = self.lanes.get(record.lane)
        if lane is None:
            known = manifest.lane(record.lane)
            is_baseline = record.lane in manifest.baselines
            lane = LaneResult(record.lane, record.kind, known, is_baseline, [], Counter(), {})
            self.lanes[record.lane] = lane
        lane.samples.append(sample_of(record, manifest.metric))
        if record.status == "failed":
            lane.failures[str(record.reason)] += 1

    def result(self, manifest: RunManifest) -> HostAnalysis:
        lanes = [self.lanes[name] for name in lane_order(manifest, self.lanes)]
        for lane in lanes:
            lane.samples.sort(key=lambda sample: sample.seq)
            if lane.n:
                lane.median = stats.median(lane.values)
        missing = missing_of(manifest, lanes)
        lost = bool(missing) and (manifest.finished_at is not None or self.empty)
        self.failures.sort(key=lambda document: (document["seq"], document["kind"]))
        return HostAnalysis(self.host, lanes, [], [], [], {}, self.failures, missing, lost)


def _lane(name: str, by_host: Mapping[str, LaneResult], lanes: int) -> FleetLane:
    medians = {host: lane.median for host, lane in by_host.items() if lane.median is not None}
    first = next(iter(by_host.values()))
    result = FleetLane(
        name=name,
        kind=first.kind,
        is_baseline=first.is_baseline,
        medians=medians,
        n=sum(lane.n for lane in by_host.values()),
        n_failed=sum(lane.n_failed for lane in by_host.values()),
        silent=[host for host, lane in by_host.items() if not lane.n],
        spread=spread([lane.values for lane in by_host.values() if lane.n]),
        outliers=outliers(name, medians, lanes),
        server=first.server,
    )
    if medians:
        result.median = stats.median(result.values)
        result.interval = stats.median_interval(result.values)
    return result


def spread(samples: Sequence[Sequence[float]]) -> Spread:
    """Components of the variance of logarithms, by a one-way analysis: what hosts add to what their starts vary anyway.

    :param samples: positive seconds of the good starts of each host
    """
    logs = [np.log(np.asarray(values, dtype=float)) for values in samples if min(values) > 0]
    sizes = np.array([len(values) for values in logs], dtype=float)
    hosts, starts = len(logs), float(sizes.sum())
    if starts - hosts < stats.LEAST_SAMPLES:
        return Spread(None, None)
    means = np.array([values.mean() for values in logs])
    within = sum(float(np.square(values - values.mean()).sum()) for values in logs) / (starts - hosts)
    between = None
    if hosts >= stats.LEAST_SAMPLES:
        grand = float((sizes * means).sum()) / starts
        of_means = float((sizes * np.square(means - grand)).sum()) / (hosts - 1)
        size = (starts - float(np.square(sizes).sum()) / starts) / (hosts - 1)
        between = max(0.0, (of_means - within) / size) ** 0.5
    return Spread(between, within**0.5)


def outliers(lane: str, medians: Mapping[str, float], lanes: int) -> list[Outlier]:
    """Hosts far from the others, the slowest first.

    The yardstick is the median deviation from the middle, which outliers themselves do not stretch. The limit allows
    for as many looks as there are hosts and lanes: among hosts alike, one of twenty fleets has an outlier.
    """
    if len(medians) < stats.LEAST_SAMPLES or min(medians.values()) <= 0:
        return []
    logs = np.log(np.array(list(medians.values())))
    middle = float(np.median(logs))
    scale = NORMAL_FROM_MAD * float(np.median(np.abs(logs - middle)))
    # That deviation is known as badly as a standard deviation of half as many hosts (test_fleet.py).
    quantile = stats.student_quantile(1 - (1 - stats.CONFIDENCE) / 2 / (len(logs) * lanes), len(logs) // 2)
    limit = max(quantile * scale, float(np.log1p(LEAST_DEVIATION)))
    found = [
        Outlier(host, lane, float(np.exp(value - middle)))
        for host, value in zip(medians, logs, strict=True)
        if abs(value - middle) > limit
    ]
    return sorted(found, key=lambda outlier: -outlier.ratio)


def speedup(slower: FleetLane, faster: FleetLane, comparisons: int) -> stats.Ratio | None:
    """How many times faster one lane is than another on the hosts that ran both; None if there is none.

    :param comparisons: as in ``stats.ratio``
    """
    shared = [host for host in slower.medians if host in faster.medians]
    if not shared:
        return None
    seed = zlib.crc32(f"{slower.name}/{faster.name}".encode())
    return stats.clustered_ratio([slower.medians[host] / faster.medians[host] for host in shared], seed, comparisons)


def sound(fleet: Fleet) -> list[FleetLane]:
    """Lanes that passed on every host that ran them and hardly ever failed, the lowest median first."""
    lanes = [lane for lane in fleet.lanes if lane.hosts and not lane.silent]
    return sorted(
        (lane for lane in lanes if lane.failed_share <= FAILURES_TOLERATED), key=lambda lane: lane.median or 0.0
    )


def findings(fleet: Fleet) -> list[Finding]:
    """What a host needs a look for, the gravest first; a host may stand in it more than once."""
    found = [*_lost(fleet), *_failed(fleet), *_deviating(fleet)]
    return sorted(found, key=lambda finding: (finding.rank, -finding.weight, finding.host))


def _lost(fleet: Fleet) -> Iterator[Finding]:
    for host in fleet.hosts:
        if not host.lost:
            continue
        done = sum(done for done, _ in host.missing.values())
        wanted = sum(wanted for _, wanted in host.missing.values())
        yield Finding(host.host, 0, float(wanted - done), loss(host).rstrip("."))


def _failed(fleet: Fleet) -> Iterator[Finding]:
    for host in fleet.hosts:
        silent = [lane for lane in host.lanes if lane.samples and not lane.n]
        for lane in silent:
            reasons = ", ".join(sorted(lane.failures))
            yield Finding(host.host, 1, lane.n_failed, f"{lane.name} never passed ({lane.n_failed} × {reasons})")
        counts = Counter(
            (str(document["lane"]), str(document["reason"]))
            for document in host.failures
            if document["lane"] not in {lane.name for lane in silent}
        )
        if counts:
            parts = [f"{lane} {count} × {reason}" for (lane, reason), count in counts.items()]
            yield Finding(host.host, 3, float(counts.total()), f"failed: {', '.join(parts)}")


def _deviating(fleet: Fleet) -> Iterator[Finding]:
    by_host: dict[tuple[str, bool], list[Outlier]] = {}
    for lane in fleet.lanes:
        for outlier in lane.outliers:
            by_host.setdefault((outlier.host, outlier.ratio > 1), []).append(outlier)
    for (host, slow), group in by_host.items():
        worst = max(group, key=lambda outlier: abs(np.log(outlier.ratio)))
        rest = f" and in {len(group) - 1} more lanes" if len(group) > 2 else ""
        rest = f" and in {group[1 - group.index(worst)].lane}" if len(group) == 2 else rest
        times = f"{worst.ratio:.2f} times the fleet's median in {worst.lane}"
        weight = abs(float(np.log(worst.ratio)))
        yield Finding(host, 2 if slow else 4, weight, f"{'slow' if slow else 'fast'}: {times}{rest}")
