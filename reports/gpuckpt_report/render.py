# SPDX-License-Identifier: GPL-3.0-or-later
"""HTML, Markdown and CSV of a run."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gpuckpt_report import noise, stats, svg, tables
from gpuckpt_report.advisor import Advice, advise
from gpuckpt_report.analysis import CONTEXT_COST, COPY_CEILING, RESTORE_FLOOR, HostAnalysis, RunAnalysis
from gpuckpt_report.headline import headline
from gpuckpt_report.noise import Noise
from gpuckpt_report.schema import MOMENTS, SIZES, Record
from gpuckpt_report.store import RunFolder
from gpuckpt_report.units import human_bytes, human_seconds, quantity

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
# Floor quantities in words; others are shown by their names.
FLOORS = {
    CONTEXT_COST: "CUDA context in a fresh process",
    COPY_CEILING: "copy host to GPU, pinned",
    "copy_h2d_pageable": "copy host to GPU, pageable",
    RESTORE_FLOOR: "restore as a whole",
    "store_read_1": "read of the checkpoint store, 1 thread",
    "store_read_8": "read of the checkpoint store, 8 threads",
}
CSV_IDENTITY = ("run_id", "host", "seq", "lane", "kind", "iteration", "warmup", "status", "reason")


@dataclass
class HostView:
    """One host as the templates show it."""

    analysis: HostAnalysis
    lanes: tables.Table
    bill: tables.Table | None
    served: tables.Table | None
    served_note: str
    phases: tables.Table | None
    checkpoints: tables.Table | None
    first_starts: tables.Table | None
    probes: tables.Table | None
    advice: Advice | None
    headline: str
    noise: Noise
    floors: list[tuple[str, str]]
    provenance: list[tuple[str, str]]
    distribution_svg: Markup
    phase_svgs: list[tuple[str, Markup]]
    sizes_svg: Markup
    drift_svg: Markup


def write(run: RunFolder, analysis: RunAnalysis) -> list[Path]:
    """Write report.html, report.md and records.csv into the run's folder, and return their paths."""
    context = {
        "run": analysis,
        "manifest": analysis.manifest,
        "hosts": [_view(host, analysis) for host in analysis.hosts],
        "sections": _manifest_sections(analysis),
        "least_samples": stats.LEAST_SAMPLES,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"human_bytes": human_bytes, "human_seconds": human_seconds}
    outputs = {
        "report.html": environment.get_template("report.html.j2").render(context),
        "report.md": environment.get_template("report.md.j2").render(context),
        "records.csv": records_csv(run.records()),
    }
    for name, content in outputs.items():
        (run.path / name).write_text(content, encoding="utf-8", newline="")
    return [run.path / name for name in outputs]


def records_csv(records: Sequence[Record]) -> str:
    """One row per record: identity, verdict, moments, sizes, and a column of seconds for every phase."""
    phase_names = list(dict.fromkeys(name for record in records for name in record.phases))
    rows = [_csv_row(record, phase_names) for record in records]
    file = StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _csv_row(record: Record, phase_names: Sequence[str]) -> dict[str, Any]:
    durations = {name: span.end - span.start for name, span in record.phases.items()}
    return (
        {name: getattr(record, name) for name in CSV_IDENTITY}
        | {"started_at": record.started_at.isoformat(), "build": record.build.name if record.build else None}
        | {"slimming": record.slimming, "source": record.source}
        | {f"{moment}_s": getattr(record.t, moment) for moment in MOMENTS}
        | {f"{name}_bytes": getattr(record.bytes, name) for name in SIZES}
        | {"gpu_mem_before_bytes": record.gpu_mem_before, "gpu_mem_after_bytes": record.gpu_mem_after}
        | {"canary_equal": record.canary.equal, "resident_fraction": record.page_cache.resident_fraction}
        | {f"phase.{name}_s": durations.get(name) for name in phase_names}
    )


def _view(host: HostAnalysis, analysis: RunAnalysis) -> HostView:
    colours = svg.colours_of(phase.name for lane in host.lanes for phase in lane.phases)
    kinds = svg.colours_of(kind for checkpoint in host.checkpoints for kind in checkpoint.images)
    return HostView(
        analysis=host,
        lanes=tables.lanes(host),
        bill=tables.bill(host),
        served=tables.served(host),
        served_note=tables.served_note(host),
        phases=tables.phases(host),
        checkpoints=tables.checkpoints(host.checkpoints),
        first_starts=tables.first_starts(host.first_starts),
        probes=tables.probes(host.probes),
        advice=advise(host),
        headline=headline(host, analysis.metric_name),
        noise=noise.judge(host),
        floors=[(FLOORS.get(name, name), quantity(value, unit)) for name, (value, unit) in host.floors.items()],
        provenance=_flatten(analysis.manifest.hosts.get(host.host, {})),
        distribution_svg=Markup(svg.distribution(f"distribution-{host.host}", host.lanes, analysis.metric_name)),
        phase_svgs=_phase_charts(host, colours),
        sizes_svg=Markup(svg.sizes(f"sizes-{host.host}", host.checkpoints, kinds)),
        drift_svg=Markup(svg.drift(f"drift-{host.host}", noise.residuals(host))),
    )


def _phase_charts(host: HostAnalysis, colours: dict[str, int]) -> list[tuple[str, Markup]]:
    """A captioned chart for each kind of start and each order of magnitude."""
    charts = []
    for title, kind in (("Restores", "restore"), ("Cold starts", "cold")):
        groups = svg.scale_groups([lane for lane in host.lanes if lane.kind == kind])
        for number, group in enumerate(groups, start=1):
            chart = svg.phases(f"phases-{kind}-{number}-{host.host}", group, colours)
            charts.append((title if number == 1 else f"{title}, the faster ones", Markup(chart)))
    return charts


def _manifest_sections(analysis: RunAnalysis) -> list[tuple[str, list[tuple[str, str]]]]:
    manifest = analysis.manifest
    return [
        ("Controller", _flatten(manifest.controller)),
        ("Server under test", _flatten(manifest.server)),
        *((f"Lane {lane.name}", _flatten(lane.model_dump(exclude_defaults=True))) for lane in manifest.lanes),
    ]


def _flatten(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted key, value) rows; lists of plain values on one row."""
    if isinstance(tree, dict) and tree:
        names = {key: f"{prefix}.{key}" if prefix else str(key) for key in tree}
        return [row for key, value in tree.items() for row in _flatten(value, names[key])]
    if isinstance(tree, list) and any(isinstance(item, (dict, list)) for item in tree):
        return [row for number, item in enumerate(tree) for row in _flatten(item, f"{prefix}[{number}]")]
    if isinstance(tree, list):
        return [(prefix, " ".join(str(item) for item in tree))]
    if tree in ({}, None):
        return [(prefix, "–")] if prefix else []
    return [(prefix, tree if isinstance(tree, str) else json.dumps(tree))]
