# SPDX-License-Identifier: GPL-3.0-or-later
"""The report of a run on many hosts: one page for all of them, and pages of single hosts in ``hosts/``."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from gpuckpt_report.analysis import noise, stats
from gpuckpt_report.analysis.fleet import Fleet, FleetLane, survey
from gpuckpt_report.analysis.run import HostAnalysis, RunAnalysis, host_analysis
from gpuckpt_report.records.schema import Record, RunManifest
from gpuckpt_report.records.store import RunFolder
from gpuckpt_report.show import fleet_text, render
from gpuckpt_report.show.charts import fleet as charts
from gpuckpt_report.text.table import Table
from gpuckpt_report.text.units import seconds

# Pages of hosts that a report makes: of those that stand out, and of others up to this number.
HOST_PAGES = 24
HOSTS_LISTED = 2_000
HOSTS_TO_LOOK_AT = 200
HOSTS_IN_MARKDOWN = 50


@dataclass(frozen=True)
class HostRow:
    """One host in the table of all: figures of each lane, with a class for those that stand out."""

    host: str
    page: str | None
    state: str
    cells: list[tuple[str, str]]


def write(run: RunFolder, fleet: Fleet) -> list[Path]:
    """Writes report.html, report.md, records.csv and pages of hosts into the run's folder, and returns their paths."""
    looked_at = fleet_text.look(fleet)
    chosen = _chosen(fleet, [host for host, _ in looked_at])
    kept = _write_csv(run, fleet, chosen)
    pages = [write_host(run, fleet.manifest, host, kept[host]) for host in chosen]
    lanes = fleet_text.ranked(fleet)
    rows = _host_rows(fleet, [lane.name for lane in lanes], set(chosen), [host for host, _ in looked_at])
    context = {
        "run": fleet,
        "manifest": fleet.manifest,
        "loss": fleet_text.loss(fleet),
        "headline": fleet_text.headline(fleet),
        "noise": fleet_text.noisy(fleet),
        "look": looked_at[:HOSTS_TO_LOOK_AT],
        "look_more": max(0, len(looked_at) - HOSTS_TO_LOOK_AT),
        "pages": set(chosen),
        "lanes": fleet_text.lanes(fleet),
        "failures": fleet_text.failures(fleet),
        "differences": fleet_text.differences(fleet.manifest),
        "lane_names": [lane.name for lane in lanes],
        "rows": rows,
        "hosts_table": _hosts_table(rows, lanes),
        "times_svg": Markup(charts.times("fleet-times", lanes, fleet.metric_name)),
        "deviations_svg": Markup(charts.deviations("fleet-deviations", lanes)),
        "sections": render.manifest_sections(fleet.manifest),
        "least_samples": stats.LEAST_SAMPLES,
        "tolerated": fleet_text.tolerated(),
    }
    templates = render.templates()
    outputs = {"report.html": "fleet.html.j2", "report.md": "fleet.md.j2"}
    for name, template in outputs.items():
        text = templates.get_template(template).render(context)
        (run.path / name).write_text(text, encoding="utf-8", newline="")
    return [*(run.path / name for name in outputs), run.path / "records.csv", *pages]


def write_report(run: RunFolder, analysis: RunAnalysis) -> list[Path]:
    """Writes the report that fits: the fleet's where there are several hosts."""
    return render.write(run, analysis) if len(analysis.hosts) == 1 else write(run, survey(run))


def write_host(run: RunFolder, manifest: RunManifest, host: str, records: Sequence[Record]) -> Path:
    """Writes the page of one host into ``hosts/`` and returns its path."""
    alone = manifest.model_copy(
        update={"hosts": {host: manifest.hosts.get(host, {})}, "hosts_asked": [host], "schedule": {}}
    )
    fake = manifest.fake or any(record.fake for record in records)
    result = RunAnalysis(alone, [host_analysis(alone, host, records)], fake)
    path = run.path / "hosts" / f"{host}.html"
    path.parent.mkdir(exist_ok=True)
    path.write_text(render.page(result, folder="../"), encoding="utf-8", newline="")
    return path


def _chosen(fleet: Fleet, first: Sequence[str]) -> list[str]:
    """Hosts that get a page: those to look at, then the others, as long as any record of theirs is there."""
    names = dict.fromkeys([*first, *(host.host for host in fleet.hosts)])
    with_records = {host.host for host in fleet.hosts if host.lanes or host.failures}
    return [name for name in names if name in with_records][:HOST_PAGES]


def _write_csv(run: RunFolder, fleet: Fleet, kept_of: Collection[str]) -> dict[str, list[Record]]:
    """Writes records.csv as the records stream by, and keeps those of some hosts."""
    kept: dict[str, list[Record]] = {host: [] for host in kept_of}
    with (run.path / "records.csv").open("w", encoding="utf-8", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for record in run.stream():
            row = render.csv_row(record, fleet.phase_names)
            if writer is None:
                writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            if record.host in kept:
                kept[record.host].append(record)
    return kept


def _host_rows(fleet: Fleet, lanes: Sequence[str], pages: Collection[str], first: Sequence[str]) -> list[HostRow]:
    """All hosts by name; where they are too many, those to look at come first and the rest is left out."""
    standing_out = {(outlier.lane, outlier.host) for lane in fleet.lanes for outlier in lane.outliers}
    hosts = fleet.hosts
    if len(hosts) > HOSTS_LISTED:
        urgent = set(first)
        hosts = sorted(hosts, key=lambda host: host.host not in urgent)[:HOSTS_LISTED]
    return [_host_row(host, fleet, lanes, pages, standing_out) for host in hosts]


def _hosts_table(rows: Sequence[HostRow], lanes: Sequence[FleetLane]) -> Table | None:
    """The same for Markdown; None where hosts are too many to be read there."""
    if len(rows) > HOSTS_IN_MARKDOWN:
        return None
    cells = [[row.host, row.state, *(text for text, _ in row.cells)] for row in rows]
    return Table(["host", "state", *(lane.name for lane in lanes)], cells)


def _host_row(
    host: HostAnalysis,
    fleet: Fleet,
    lanes: Sequence[str],
    pages: Collection[str],
    standing_out: Collection[tuple[str, str]],
) -> HostRow:
    by_name = {lane.name: lane for lane in host.lanes}
    cells = []
    for name in lanes:
        lane = by_name.get(name)
        if lane is None:
            cells.append(("–", ""))
        elif lane.n_failed:
            cells.append((f"{seconds(lane.median)} ({lane.n_failed} failed)", "failed"))
        else:
            cells.append((seconds(lane.median), "out" if (name, host.host) in standing_out else ""))
    grade = fleet.grades[host.host]
    state = "LOST" if host.lost else "" if grade == noise.UNKNOWN else grade
    return HostRow(host.host, f"hosts/{host.host}.html" if host.host in pages else None, state, cells)
