# SPDX-License-Identifier: GPL-3.0-or-later
"""From the database to figures: lanes, phases, sizes, floors, failures of one run."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from sqlalchemy import Engine

from gpuckpt_report import database, stats
from gpuckpt_report.errors import ReportError
from gpuckpt_report.schema import MEASURED_KINDS, Lane, RunManifest
from gpuckpt_report.store import RunFolder

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

    @property
    def baseline(self) -> LaneResult | None:
        """The lane that the others are compared with, if it has run on this host."""
        return next((lane for lane in self.lanes if lane.is_baseline), None)


@dataclass
class RunAnalysis:
    """Everything measured in one run."""

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


def analyse(engine: Engine, run: RunFolder) -> RunAnalysis:
    """Load a run into the database and compute its figures.

    :raises ReportError: if the run has no records yet
    """
    manifest = run.manifest()
    database.load(engine, run)
    tables = (database.RECORDS, *database.DETAILS)
    frames = {table.name: database.read(engine, table, manifest.run_id) for table in tables}
    records = frames["records"]
    if records.empty:
        raise ReportError(f"run {manifest.run_id} has no records yet: `gpuckpt ingest` adds them")
    hosts = [
        _Host(manifest, host, {name: frame[frame["host"] == host] for name, frame in frames.items()}).analysis()
        for host in sorted({*records["host"], *manifest.hosts_asked})
    ]
    return RunAnalysis(manifest, hosts, manifest.fake or bool(records["fake"].any()))


class _Host:
    """The frames of one host, and what is computed from them."""

    def __init__(self, manifest: RunManifest, host: str, frames: dict[str, pd.DataFrame]) -> None:
        self.manifest = manifest
        self.host = host
        self.frames = frames
        self.records = frames["records"]
        self.floors = self._floor_medians()

    def analysis(self) -> HostAnalysis:
        lanes = self._lanes()
        missing = self._missing(lanes)
        return HostAnalysis(
            host=self.host,
            lanes=lanes,
            checkpoints=self._checkpoints(),
            first_starts=self._first_starts(),
            probes=self._probes(),
            floors=self.floors,
            failures=self._failures(),
            missing=missing,
            lost=bool(missing) and (self.manifest.finished_at is not None or self.records.empty),
        )

    def _missing(self, lanes: Sequence[LaneResult]) -> dict[str, tuple[int, int]]:
        measured = {lane.name: len(lane.samples) for lane in lanes}
        wanted = {lane.name: lane.iterations or self.manifest.iterations for lane in self.manifest.lanes}
        return {name: (measured.get(name, 0), count) for name, count in wanted.items() if measured.get(name, 0) < count}

    def _lanes(self) -> list[LaneResult]:
        measured = self.records[self.records["kind"].isin(MEASURED_KINDS) & ~self.records["warmup"].astype(bool)]
        order = [lane.name for lane in self.manifest.lanes]
        order += sorted(set(measured["lane"]) - set(order))
        lanes = [self._lane(name, rows) for name in order if not (rows := measured[measured["lane"] == name]).empty]
        baseline = next((lane for lane in lanes if lane.is_baseline), None)
        for lane in lanes:
            if baseline is not None and lane is not baseline and baseline.n and lane.n:
                lane.speedup = speedup(baseline, lane, pairs_of(lanes))
        return lanes

    def _lane(self, name: str, rows: pd.DataFrame) -> LaneResult:
        ok = rows[rows["status"] == "ok"]
        failed = rows[rows["status"] == "failed"]
        result = LaneResult(
            name=name,
            kind=str(rows["kind"].iloc[0]),
            lane=self.manifest.lane(name),
            is_baseline=name == self.manifest.baseline,
            samples=[
                Sample(
                    row["seq"],
                    row["iteration"],
                    row[self.manifest.metric] if row["status"] == "ok" else None,
                    _condition(row, "calibration_s"),
                    _condition(row, "steal_share"),
                    _load_share(row),
                )
                for row in _dicts(rows)
            ],
            failures=Counter(str(reason) for reason in failed["reason"]),
            token_gaps=_token_gaps(ok),
            moments={moment: _median(ok[moment]) for moment in ("T1", "T2", "T3", "T4", "T5")},
            gpu_bytes=_median(ok["gpu_bytes"]),
            images_bytes=_median(ok["images_total_bytes"]),
            gpu_mem_after=_range(rows["gpu_mem_after"]),
        )
        if result.n:
            result.median = stats.median(result.values)
            result.p90 = stats.quantile(result.values, 0.9)
            result.interval = stats.median_interval(result.values)
            result.phases_seq = _nearest(result.samples, result.median)
            result.phases = self._phases(set(ok["seq"]), result.kind, result.phases_seq)
            result.floor = self._floor_of(result.gpu_bytes)
        return result

    def _phases(self, seqs: set[int], kind: str, shown: int) -> list[Phase]:
        """The phases of the record nearest the median, as that record has them, with the medians of all ok records."""
        frame = self.frames["phases"]
        frame = frame[frame["seq"].isin(seqs) & (frame["kind"] == kind)]
        medians = (frame["end_s"] - frame["start_s"]).groupby(frame["phase"]).median()
        rows = frame[frame["seq"] == shown].sort_values(["start_s", "end_s"])
        return [Phase(row["phase"], row["start_s"], row["end_s"], float(medians[row["phase"]])) for row in _dicts(rows)]

    def _checkpoints(self) -> list[CheckpointSize]:
        taken = self.records[(self.records["kind"] == "checkpoint") & (self.records["status"] == "ok")]
        images = self.frames["images"]
        images = images[images["kind"] == "checkpoint"]
        sizes = []
        for row in _dicts(taken):
            kinds = images[images["seq"] == row["seq"]].sort_values("bytes", ascending=False)
            by_kind = {str(entry["image_kind"]): int(entry["bytes"]) for entry in _dicts(kinds)}
            total = _integer(row["images_total_bytes"])
            sizes.append(
                CheckpointSize(
                    lane=row["lane"],
                    images=by_kind,
                    total=sum(by_kind.values()) if total is None else total,
                    gpu=_integer(row["gpu_bytes"]),
                    archive=_integer(row["archive_bytes"]),
                    dump_s=_number(row["T1"]),
                )
            )
        return sizes

    def _first_starts(self) -> list[FirstStart]:
        """Cold starts beside the schedule: warm-up records under the name of a server, which is no lane's."""
        rows = self.records[(self.records["kind"] == "cold") & (self.records["status"] == "ok")]
        beside = rows[rows["warmup"].astype(bool) & ~rows["lane"].isin([lane.name for lane in self.manifest.lanes])]
        return [
            FirstStart(row["lane"], _number(row["T3"]), _number(row["T4"])) for row in _dicts(beside.sort_values("seq"))
        ]

    def _probes(self) -> list[ProbeResult]:
        lanes = self.records.loc[self.records["kind"] == "probe", ["seq", "kind", "lane"]]
        requests = self.frames["requests"].merge(lanes, on=["seq", "kind"])
        results = []
        for lane, rows in requests.groupby("lane", sort=False):
            streamed = rows[rows["duration_s"] > 0]
            rates = streamed["tokens"] / streamed["duration_s"]
            ttft = list(rows["ttft_s"])
            results.append(
                ProbeResult(str(lane), len(ttft), stats.median(ttft), stats.quantile(ttft, 0.9), _median(rates))
            )
        return results

    def _failures(self) -> list[dict[str, Any]]:
        """Documents of the failed records of every kind, warm-up included, in the order of the run."""
        failed = self.records[self.records["status"] == "failed"].sort_values(["started_at", "seq"])
        return list(failed["document"])

    def _floor_medians(self) -> dict[str, tuple[float, str]]:
        groups = self.frames["floors"].groupby("name")
        return {str(name): (float(rows["value"].median()), str(rows["unit"].iloc[0])) for name, rows in groups}

    def _floor_of(self, gpu_bytes: float | None) -> float | None:
        """Seconds below which this node cannot restore so many bytes: measured as a whole, or context plus copy."""
        if RESTORE_FLOOR in self.floors:
            return self.floors[RESTORE_FLOOR][0]
        if gpu_bytes is None or not {CONTEXT_COST, COPY_CEILING} <= self.floors.keys():
            return None
        return self.floors[CONTEXT_COST][0] + gpu_bytes / self.floors[COPY_CEILING][0]


def pairs_of(lanes: Sequence[LaneResult]) -> int:
    """Pairs of lanes with enough samples to be compared; 1 where there is none."""
    enough = sum(lane.n >= stats.LEAST_SAMPLES for lane in lanes)
    return max(1, enough * (enough - 1) // 2)


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


def _dicts(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _median(column: pd.Series[Any]) -> float | None:
    present = [float(value) for value in column.dropna()]
    return stats.median(present) if present else None


def _range(column: pd.Series[Any]) -> tuple[int, int] | None:
    present = column.dropna()
    return (int(present.min()), int(present.max())) if len(present) else None


def _token_gaps(rows: pd.DataFrame) -> list[float]:
    """Seconds from one token to the next of each record's canary, the first token left out."""
    found = []
    for row in _dicts(rows):
        tokens = len((row["document"].get("canary") or {}).get("tokens") or [])
        if tokens > 1 and not pd.isna(row["T4"]) and not pd.isna(row["T5"]):
            found.append((row["T5"] - row["T4"]) / (tokens - 1))
    return found


def _condition(row: dict[str, Any], name: str) -> float | None:
    return (row["document"].get("conditions") or {}).get(name)


def _load_share(row: dict[str, Any]) -> float | None:
    """Load before the entry for each processor."""
    load, processors = (_condition(row, name) for name in ("load_before", "processors"))
    return None if load is None or not processors else load / processors


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _integer(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)
