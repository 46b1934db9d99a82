# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs as lists and documents: what ``gpuckpt runs`` and ``show`` print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpuckpt_report.analysis.run import HostAnalysis, LaneResult, RunAnalysis, RunOfHosts
from gpuckpt_report.errors import ReportError
from gpuckpt_report.records.store import RunFolder, started_at
from gpuckpt_report.show.headline import headline
from gpuckpt_report.text.table import Table


@dataclass(frozen=True)
class RunEntry:
    """A run in the list; ``state`` says whether it ended, or why it cannot be read."""

    run_id: str
    started_at: str
    hosts: int
    lanes: int
    records: int
    failed: int
    state: str

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def runs(folder: Path) -> list[RunEntry]:
    """All runs of a folder, newest first; one that cannot be read is listed with the reason."""
    paths = sorted(folder.glob("*/manifest.json"), key=started_at, reverse=True)
    return [_entry(RunFolder(path.parent)) for path in paths]


def _entry(run: RunFolder) -> RunEntry:
    try:
        manifest = run.manifest()
        statuses = Counter(record.status for record in run.stream())
    except ReportError as error:
        return RunEntry(run.path.name, "", 0, 0, 0, 0, f"unreadable: {str(error).splitlines()[0]}")
    state = "unfinished" if manifest.finished_at is None else "finished"
    hosts = {*manifest.hosts, *manifest.hosts_asked}
    started = f"{manifest.started_at:%Y-%m-%d %H:%M}"
    return RunEntry(
        manifest.run_id, started, len(hosts), len(manifest.lanes), statuses.total(), statuses["failed"], state
    )


def runs_table(entries: Sequence[RunEntry]) -> Table:
    """The list as a table."""
    rows = [
        [
            entry.run_id,
            entry.started_at,
            *map(str, (entry.hosts, entry.lanes, entry.records, entry.failed)),
            entry.state,
        ]
        for entry in entries
    ]
    return Table(["run", "started", "hosts", "lanes", "records", "failed", "state"], rows)


def facts(run: RunOfHosts) -> Iterator[str]:
    """What was measured, when and where, a line each."""
    manifest = run.manifest
    yield f"run {manifest.run_id}" + (f": {manifest.description}" if manifest.description else "")
    ended = f"finished {manifest.finished_at:%Y-%m-%d %H:%M}" if manifest.finished_at else "UNFINISHED"
    yield f"started {manifest.started_at:%Y-%m-%d %H:%M %Z}, {ended}"
    dirty = " with uncommitted changes" if manifest.git.dirty else ""
    yield f"commit {(manifest.git.sha or 'unknown')[:12]}{dirty}, seed {manifest.seed}"
    yield f"server {manifest.server.get('name', 'unknown')}, model {manifest.server.get('model', 'unknown')}"


def failures(run: RunAnalysis) -> Iterator[str]:
    """Each failed record in a line."""
    for host in run.hosts:
        for record in host.failures:
            what = f"{record['lane']} iteration {record['iteration']} ({record['kind']})"
            yield f"{host.host}: {what} failed: {record['reason']}: {record['message'] or 'no message'}"


def document(run: RunAnalysis) -> dict[str, Any]:
    """A run as JSON; times in seconds."""
    manifest = run.manifest.model_dump(mode="json", include={"run_id", "started_at", "finished_at", "git", "metric"})
    return manifest | {"hosts": [_host_document(host, run) for host in run.hosts]}


def _host_document(host: HostAnalysis, run: RunAnalysis) -> dict[str, Any]:
    return {
        "host": host.host,
        "headline": headline(host, run.metric_name),
        "lost": host.lost,
        "missing": {name: {"measured": done, "wanted": wanted} for name, (done, wanted) in host.missing.items()},
        "lanes": [_lane_document(lane) for lane in host.lanes],
    }


def _lane_document(lane: LaneResult) -> dict[str, Any]:
    speedup = lane.speedup
    return {
        "lane": lane.name,
        "baseline": lane.is_baseline,
        "median_s": lane.median,
        "interval_s": None if lane.interval is None else [lane.interval.low, lane.interval.high],
        "values_s": lane.values,
        "failed": lane.n_failed,
        "bill": [asdict(sample) for sample in lane.bill],
        "times_faster": None if speedup is None else speedup.value,
        "times_faster_interval": None
        if speedup is None or speedup.interval is None
        else [speedup.interval.low, speedup.interval.high],
    }
