# SPDX-License-Identifier: GPL-3.0-or-later
"""From records to figures: lanes, phases, sizes, floors, failures of one run."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpuckpt_report.analysis import bill, stats
from gpuckpt_report.analysis.bill import BillSample
from gpuckpt_report.errors import ReportError
from gpuckpt_report.records.schema import Lane, Quantity, Record, Request, RunManifest
from gpuckpt_report.records.store import RunFolder
from gpuckpt_report.records.vocabulary import MEASURED_KINDS, MOMENTS, Metric

UNATTRIBUTED = "unattributed"
# Floor quantities that this package gives a meaning; others are listed as they are.
RESTORE_FLOOR, CONTEXT_COST, COPY_CEILING = "restore", "context", "copy_h2d"

METRIC_NAMES = {"T4": "time to first token", "T1": "end of the restore command"}


@dataclass(frozen=True)
class Sample:
    """One measured iteration: its number, its seconds (None where it failed), and how the machine was meanwhile."""

    seq: int
    iteration: int
    value: float | None
    calibration_s: float | None = None
    steal_share: float | None = None
    load_share: float | None = None


@dataclass(frozen=True)
class Phase:
    """A phase as one record has it, and its median duration over the lane's ok records, in seconds."""

    name: str
    start: float
    end: float
    median: float


@dataclass
class LaneResult:
    """One lane on one host."""

    name: str
    kind: str
    lane: Lane | None
    is_baseline: bool
    samples: list[Sample]
    failures: Counter[str]
    moments: dict[str, float | None]
    token_gaps: list[float] = field(default_factory=list)
    bill: list[BillSample] = field(default_factory=list)
    median: float | None = None
    interval: stats.Interval | None = None
    p90: float | None = None
    speedup: stats.Ratio | None = None
    phases: list[Phase] = field(default_factory=list)
    phases_seq: int | None = None
    gpu_bytes: float | None = None
    images_bytes: float | None = None
    gpu_mem_after: tuple[int, int] | None = None
    floor: float | None = None

    @property
    def values(self) -> list[float]:
        """Seconds of the ok iterations."""
        return [sample.value for sample in self.samples if sample.value is not None]

    @property
    def n(self) -> int:
        """Number of ok iterations."""
        return len(self.values)

    @property
    def n_failed(self) -> int:
        """Number of failed iterations."""
        return sum(self.failures.values())

    @property
    def server(self) -> str | None:
        """Model of the server, where it is another than the run's own: lanes of two servers are not compared."""
        return self.lane.other_server if self.lane else None


@dataclass(frozen=True)
class CheckpointSize:
    """A checkpoint that lanes restored from: image bytes by kind, seconds that its dump took."""

    lane: str
    images: dict[str, int]
    total: int
    gpu: int | None
    archive: int | None
    dump_s: float | None


@dataclass(frozen=True)
class FirstStart:
    """The start of a server that checkpoints are taken of: seconds until it was healthy, and until its first token."""

    server: str
    healthy_s: float | None
    first_token_s: float | None


@dataclass(frozen=True)
class ProbeResult:
    """Warm-up requests: seconds to the first token, tokens per second."""

    lane: str
    n: int
    ttft_median: float
    ttft_p90: float
    tokens_per_s: float | None


@dataclass
class HostAnalysis:
    """Everything measured on one host.

    ``missing`` holds the lanes with fewer records than they should have: iterations measured, and wanted. ``lost`` says
    that the run ended without them.
    """

    host: str
    lanes: list[LaneResult]
    checkpoints: list[CheckpointSize]
    first_starts: list[FirstStart]
    probes: list[ProbeResult]
    floors: dict[str, tuple[float, str]]
    failures: list[dict[str, Any]]
    missing: dict[str, tuple[int, int]] = field(default_factory=dict)
    lost: bool = False

    @property
    def comparisons(self) -> int:
        """Pairs of lanes that have enough samples to be compared: for so many ratios the intervals hold together."""
        return pairs_of(self.lanes)

    def by_server(self) -> dict[str | None, list[LaneResult]]:
        """The lanes of each server, those of the run's own (None) first."""
        servers: dict[str | None, list[LaneResult]] = {None: []}
        for lane in self.lanes:
            servers.setdefault(lane.server, []).append(lane)
        return {server: lanes for server, lanes in servers.items() if lanes}


@dataclass
class RunOfHosts:
    """A run and its hosts, whether each of them is told of in full or as one of many."""

    manifest: RunManifest
    hosts: list[HostAnalysis]
    fake: bool

    @property
    def metric_name(self) -> str:
        """What the headline figure is, in words."""
        return METRIC_NAMES[self.manifest.metric]

    @property
    def lost(self) -> list[str]:
        """Names of the hosts that were never reached, or lost on the way."""
        return [host.host for host in self.hosts if host.lost]

    @property
    def n_failed(self) -> int:
        """Number of failed records of all hosts and kinds."""
        return sum(len(host.failures) for host in self.hosts)


class RunAnalysis(RunOfHosts):
    """Everything measured in one run."""


def analyse(run: RunFolder, hosts: Collection[str] | None = None) -> RunAnalysis:
    """Computes the figures of a run from its records.

    :param hosts: names of the hosts to look at; None for all, whose records are then in memory at once
    :raises ReportError: if the run has no records yet, or names no such host
    """
    manifest = run.manifest()
    by_host: dict[str, list[Record]] = {host: [] for host in manifest.hosts_asked}
    fake, empty = manifest.fake, True
    for record in run.stream():
        fake, empty = fake or record.fake, False
        kept = by_host.setdefault(record.host, [])
        if hosts is None or record.host in hosts:
            kept.append(record)
    if empty:
        raise ReportError(f"run {manifest.run_id} has no records yet: `gpuckpt ingest` adds them")
    for host in hosts or ():
        if host not in by_host:
            raise ReportError(f"run {manifest.run_id} has no host {host!r}; it has: {_named(sorted(by_host))}")
    chosen = sorted(by_host if hosts is None else hosts)
    return RunAnalysis(manifest, [host_analysis(manifest, host, by_host[host]) for host in chosen], fake)


def host_analysis(manifest: RunManifest, host: str, records: Sequence[Record]) -> HostAnalysis:
    """Computes the figures of one host from its records, in whatever order these are."""
    return _Host(manifest, host, sorted(records, key=lambda record: (record.seq, record.kind))).analysis()


class _Host:
    """The records of one host in the order of the run, and what is computed from them."""

    def __init__(self, manifest: RunManifest, host: str, records: Sequence[Record]) -> None:
        self.manifest = manifest
        self.host = host
        self.records = records
        self.floors = self._floor_medians()
        self.bills = bill.samples(records)

    def analysis(self) -> HostAnalysis:
        lanes = self._lanes()
        missing = missing_of(self.manifest, lanes)
        return HostAnalysis(
            host=self.host,
            lanes=lanes,
            checkpoints=self._checkpoints(),
            first_starts=self._first_starts(),
            probes=self._probes(),
            floors=self.floors,
            failures=self._failures(),
            missing=missing,
            lost=bool(missing) and (self.manifest.finished_at is not None or not self.records),
        )

    def _lanes(self) -> list[LaneResult]:
        measured: dict[str, list[Record]] = {}
        for record in self.records:
            if is_measured(record):
                measured.setdefault(record.lane, []).append(record)
        lanes = [self._lane(name, measured[name]) for name in lane_order(self.manifest, measured)]
        baselines = {lane.server: lane for lane in lanes if lane.is_baseline and lane.n}
        for lane in lanes:
            baseline = baselines.get(lane.server)
            if baseline is not None and lane is not baseline and lane.n:
                lane.speedup = speedup(baseline, lane, pairs_of(lanes))
        return lanes

    def _lane(self, name: str, records: Sequence[Record]) -> LaneResult:
        ok = [record for record in records if record.status == "ok"]
        result = LaneResult(
            name=name,
            kind=records[0].kind,
            lane=self.manifest.lane(name),
            is_baseline=name in self.manifest.baselines,
            samples=[sample_of(record, self.manifest.metric) for record in records],
            failures=Counter(str(record.reason) for record in records if record.status == "failed"),
            token_gaps=_token_gaps(ok),
            bill=self.bills.get(name, []),
            moments={moment: _median(getattr(record.t, moment) for record in ok) for moment in MOMENTS},
            gpu_bytes=_median(record.bytes.gpu for record in ok),
            images_bytes=_median(record.bytes.images_total for record in ok),
            gpu_mem_after=_range(record.gpu_mem_after for record in records),
        )
        if result.n:
            result.median = stats.median(result.values)
            result.p90 = stats.quantile(result.values, 0.9)
            result.interval = stats.median_interval(result.values)
            result.phases_seq = _nearest(result.samples, result.median)
            result.phases = _phases(ok, result.phases_seq)
            result.floor = self._floor_of(result.gpu_bytes)
        return result

    def _checkpoints(self) -> list[CheckpointSize]:
        taken = [record for record in self.records if record.kind == "checkpoint" and record.status == "ok"]
        return [_checkpoint_size(record) for record in taken]

    def _first_starts(self) -> list[FirstStart]:
        """Cold starts outside the schedule: warm-up records under the name of a server, which is no lane's."""
        return [
            FirstStart(record.lane, record.t.T3, record.t.T4)
            for record in self.records
            if (record.kind, record.status, record.warmup) == ("cold", "ok", True)
            and self.manifest.lane(record.lane) is None
        ]

    def _probes(self) -> list[ProbeResult]:
        """Requests to warm servers up: those of a bill have a table of their own."""
        asked: dict[str, list[Request]] = {}
        for record in self.records:
            if record.kind == "probe" and record.requests and record.bill is None:
                asked.setdefault(record.lane, []).extend(record.requests)
        return [_probe_result(lane, requests) for lane, requests in asked.items()]

    def _failures(self) -> list[dict[str, Any]]:
        """Documents of the failed records of every kind, warm-up included, in the order of the run."""
        failed = [record for record in self.records if record.status == "failed"]
        failed.sort(key=lambda record: (record.started_at, record.seq))
        return [record.model_dump(mode="json") for record in failed]

    def _floor_medians(self) -> dict[str, tuple[float, str]]:
        measured: dict[str, list[Quantity]] = {}
        for record in self.records:
            for name, quantity in record.floor.items():
                measured.setdefault(name, []).append(quantity)
        return {
            name: (stats.median([quantity.value for quantity in found]), found[0].unit)
            for name, found in sorted(measured.items())
        }

    def _floor_of(self, gpu_bytes: float | None) -> float | None:
        """Seconds below which this node cannot restore so many bytes: measured as a whole, or context plus copy."""
        if RESTORE_FLOOR in self.floors:
            return self.floors[RESTORE_FLOOR][0]
        if gpu_bytes is None or not {CONTEXT_COST, COPY_CEILING} <= self.floors.keys():
            return None
        return self.floors[CONTEXT_COST][0] + gpu_bytes / self.floors[COPY_CEILING][0]


def is_measured(record: Record) -> bool:
    """Whether a record is one of a lane's iterations, good or failed."""
    return record.kind in MEASURED_KINDS and not record.warmup


def lane_order(manifest: RunManifest, measured: Collection[str]) -> list[str]:
    """Names of the lanes that were measured: those of the manifest as it has them, then the others by name."""
    known = [lane.name for lane in manifest.lanes]
    return [name for name in known if name in measured] + sorted(set(measured) - set(known))


def missing_of(manifest: RunManifest, lanes: Sequence[LaneResult]) -> dict[str, tuple[int, int]]:
    """Lanes with fewer records than the manifest asks for: iterations measured, and wanted."""
    measured = {lane.name: len(lane.samples) for lane in lanes}
    wanted = {lane.name: lane.iterations or manifest.iterations for lane in manifest.lanes}
    return {name: (measured.get(name, 0), count) for name, count in wanted.items() if measured.get(name, 0) < count}


def sample_of(record: Record, metric: Metric) -> Sample:
    """One iteration of a lane as its record has it."""
    value = getattr(record.t, metric) if record.status == "ok" else None
    conditions = record.conditions
    if conditions is None:
        return Sample(record.seq, record.iteration, value)
    load = conditions.load_before / conditions.processors
    return Sample(record.seq, record.iteration, value, conditions.calibration_s, conditions.steal_share, load)


def pairs_of(lanes: Sequence[LaneResult]) -> int:
    """Pairs of lanes of one server with enough samples to be compared; 1 where there is none."""
    return pairs(lane.server for lane in lanes if lane.n >= stats.LEAST_SAMPLES)


def pairs(servers: Iterable[str | None]) -> int:
    """Pairs of lanes that have the same server; 1 where there is none.

    :param servers: the server of each lane
    """
    return max(1, sum(count * (count - 1) // 2 for count in Counter(servers).values()))


def speedup(slower: LaneResult, faster: LaneResult, comparisons: int) -> stats.Ratio:
    """How many times faster one lane is than another; paired by round where both ran in the same rounds.

    :param comparisons: as in ``stats.ratio``
    """
    # Draws differ between pairs, and are the same each time the report is made.
    seed = zlib.crc32(f"{slower.name}/{faster.name}".encode())
    rounds = {sample.iteration: sample.value for sample in slower.samples}
    others = {sample.iteration: sample.value for sample in faster.samples}
    if rounds.keys() == others.keys():
        return stats.paired_ratio([(rounds[number], others[number]) for number in sorted(rounds)], seed, comparisons)
    return stats.ratio(slower.values, faster.values, seed, comparisons)


def _nearest(samples: Sequence[Sample], value: float) -> int:
    measured = [(abs(sample.value - value), sample.seq) for sample in samples if sample.value is not None]
    return min(measured)[1]


def _phases(ok: Sequence[Record], shown: int) -> list[Phase]:
    """The phases of one record, by its number, as it has them, with the medians of all ok records."""
    durations: dict[str, list[float]] = {}
    for record in ok:
        for name, span in record.phases.items():
            durations.setdefault(name, []).append(span.end - span.start)
    spans = next(record.phases for record in ok if record.seq == shown)
    phases = [Phase(name, span.start, span.end, stats.median(durations[name])) for name, span in spans.items()]
    return sorted(phases, key=lambda phase: (phase.start, phase.end, phase.name))


def _checkpoint_size(record: Record) -> CheckpointSize:
    sizes = record.bytes
    images = dict(sorted(sizes.images.items(), key=lambda item: (-item[1], item[0])))
    total = sum(images.values()) if sizes.images_total is None else sizes.images_total
    return CheckpointSize(record.lane, images, total, sizes.gpu, sizes.archive, record.t.T1)


def _probe_result(lane: str, requests: Sequence[Request]) -> ProbeResult:
    ttft = [request.ttft_s for request in requests]
    rates = [request.tokens / request.duration_s for request in requests if request.duration_s > 0]
    return ProbeResult(lane, len(ttft), stats.median(ttft), stats.quantile(ttft, 0.9), _median(rates))


def _median(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return stats.median(present) if present else None


def _range(values: Iterable[int | None]) -> tuple[int, int] | None:
    present = [value for value in values if value is not None]
    return (min(present), max(present)) if present else None


def _token_gaps(records: Iterable[Record]) -> list[float]:
    """Seconds from one token to the next of each record's canary, the first token left out."""
    found = []
    for record in records:
        tokens, first, last = len(record.canary.tokens), record.t.T4, record.t.T5
        if tokens > 1 and first is not None and last is not None:
            found.append((last - first) / (tokens - 1))
    return found


def _named(names: Sequence[str], limit: int = 12) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def loss(host: HostAnalysis) -> str:
    """What is missing of a host that was lost, in a sentence or two."""
    if not any(lane.samples for lane in host.lanes):
        return (
            "LOST: no measurement of this host arrived; it was never reached, or was lost with its records. "
            f"Missing: {', '.join(host.missing)}."
        )
    parts = [f"{name} has {done} of {wanted}" for name, (done, wanted) in host.missing.items()]
    return f"LOST on the way; measurements are missing: {', '.join(parts)}."
