# SPDX-License-Identifier: GPL-3.0-or-later
"""HTML, Markdown and CSV of a run."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gpuckpt_report import PROJECT
from gpuckpt_report.analysis import bill, noise, stats
from gpuckpt_report.analysis.advisor import Advice, advise
from gpuckpt_report.analysis.noise import Noise
from gpuckpt_report.analysis.run import CONTEXT_COST, COPY_CEILING, RESTORE_FLOOR, HostAnalysis, LaneResult, RunAnalysis
from gpuckpt_report.records.schema import SIZES, Record, RunManifest
from gpuckpt_report.records.store import RunFolder
from gpuckpt_report.records.vocabulary import MOMENTS
from gpuckpt_report.show import charts, subject, tables
from gpuckpt_report.show.headline import headline
from gpuckpt_report.show.phase_classes import glossary
from gpuckpt_report.text.markdown import escaped
from gpuckpt_report.text.table import Table
from gpuckpt_report.text.units import human_bytes, human_seconds, quantity

TEMPLATES = PROJECT / "reports" / "templates"
# Floor quantities in words; others are shown by their names.
FLOORS = {
    CONTEXT_COST: "CUDA context in a fresh process",
    COPY_CEILING: "copy host to GPU, pinned",
    "copy_h2d_pageable": "copy host to GPU, pageable",
    RESTORE_FLOOR: "restore as a whole",
    "store_read_1": "read of the checkpoint store, 1 thread",
    "store_read_8": "read of the checkpoint store, 8 threads",
}
BILL = ("at_s", "tokens_per_s", "token_s")
CSV_IDENTITY = ("run_id", "host", "seq", "lane", "kind", "iteration", "warmup", "status", "reason")


# What a reader may take from the folder of the report, in words.
FILES = {
    "records.jsonl": "all records (JSON lines)",
    "records.csv": "records as CSV",
    "manifest.json": "manifest",
    "report.md": "report as Markdown",
}


@dataclass(frozen=True)
class Answer:
    """A lane that every reader asks for, in figures."""

    role: str
    lane: str
    median: str
    bounds: str
    n: int
    failed: int


@dataclass
class HostView:
    """One host as the templates show it."""

    analysis: HostAnalysis
    lanes: Table
    bill: Table | None
    served: Table | None
    served_note: str
    phases: Table | None
    checkpoints: Table | None
    first_starts: Table | None
    probes: Table | None
    golden: Table | None
    advice: Advice | None
    answers: list[Answer]
    headline: str
    noise: Noise
    floors: list[tuple[str, str]]
    provenance: list[tuple[str, str]]
    distribution_svg: Markup
    phase_svgs: list[tuple[str, Markup]]
    sizes_svg: Markup
    drift_svg: Markup


def write(run: RunFolder, analysis: RunAnalysis) -> list[Path]:
    """Writes report.html, report.md and records.csv into the run's folder, and returns their paths."""
    context = _context(analysis)
    outputs = {
        "report.html": templates().get_template("report.html.j2").render(context),
        "report.md": templates().get_template("report.md.j2").render(context),
        "records.csv": records_csv(run.records()),
    }
    for name, content in outputs.items():
        (run.path / name).write_text(content, encoding="utf-8", newline="")
    return [run.path / name for name in outputs]


def page(analysis: RunAnalysis, folder: str = "") -> str:
    """The HTML of a run, or of one of its hosts.

    :param folder: where the run's folder lies from the page, such as ``../``
    """
    return templates().get_template("report.html.j2").render(_context(analysis, folder))


@functools.cache
def templates() -> jinja2.Environment:
    """The templates, with what they call."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"human_bytes": human_bytes, "human_seconds": human_seconds, "md": escaped}
    return environment


def _context(analysis: RunAnalysis, folder: str = "") -> dict[str, Any]:
    files = {f"{folder}{name}": words for name, words in FILES.items()}
    return {
        "run": analysis,
        "manifest": analysis.manifest,
        "title": subject.title(analysis),
        "compared": subject.compared(analysis.manifest),
        "facts": subject.facts(analysis),
        "files": {f"{folder}report.html": "all hosts"} | files if folder else files,
        "n_ok": sum(lane.n for host in analysis.hosts for lane in host.lanes),
        "hosts": [_view(host, analysis) for host in analysis.hosts],
        "all_phases": glossary(part.name for host in analysis.hosts for lane in host.lanes for part in lane.phases),
        "sections": manifest_sections(analysis.manifest),
        "least_samples": stats.LEAST_SAMPLES,
    }


def records_csv(records: Sequence[Record]) -> str:
    """One row per record: identity, verdict, moments, sizes, and a column of seconds for every phase.

    A run with a bill has columns for it, too: when the server was asked (seconds after its start), and how fast it was.
    """
    phase_names = list(dict.fromkeys(name for record in records for name in record.phases))
    rows = [csv_row(record, phase_names) for record in records]
    billed = [bill.sample(record) for record in records]
    if any(billed):
        rows = [row | {f"bill.{name}": getattr(one, name, None) for name in BILL} for row, one in zip(rows, billed)]
    file = StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def csv_row(record: Record, phase_names: Sequence[str]) -> dict[str, Any]:
    """A record as a row of records.csv, with a column for each of these phases."""
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
    lanes = tables.ranked(host.lanes)
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
        golden=tables.golden(analysis.manifest.hosts.get(host.host, {}).get("golden")),
        advice=advise(host),
        answers=_answers(lanes),
        headline=headline(host, analysis.metric_name),
        noise=noise.judge(host),
        floors=[(FLOORS.get(name, name), quantity(value, unit)) for name, (value, unit) in host.floors.items()],
        provenance=_flatten(analysis.manifest.hosts.get(host.host, {})),
        distribution_svg=Markup(charts.distribution(f"distribution-{host.host}", lanes, analysis.metric_name)),
        phase_svgs=_phase_charts(host.host, lanes),
        sizes_svg=Markup(charts.sizes(f"sizes-{host.host}", host.checkpoints)),
        drift_svg=Markup(charts.drift(f"drift-{host.host}", noise.residuals(host))),
    )


def _answers(ranked: Sequence[LaneResult]) -> list[Answer]:
    """The lane that the headline names, the baseline, and the fastest cold start; each once."""
    own = [lane for lane in ranked if lane.server is None]
    asked = [
        ("Lowest median", [lane for lane in own if lane.n and not lane.n_failed]),
        ("Baseline", [lane for lane in own if lane.is_baseline]),
        ("Cold start", [lane for lane in own if lane.kind == "cold"]),
    ]
    roles: dict[str, tuple[list[str], LaneResult]] = {}
    for role, found in asked:
        if found:
            roles.setdefault(found[0].name, ([], found[0]))[0].append(role)
    return [_answer(" · ".join(names), lane) for names, lane in roles.values()]


def _answer(role: str, lane: LaneResult) -> Answer:
    median = "no good start" if lane.median is None else human_seconds(lane.median)
    kind = "95 % interval" if lane.interval is not None else "values"
    bounds = f"{kind} {tables.interval_or_values(lane, human_seconds)}" if lane.n else ""
    return Answer(role, lane.name, median, bounds, lane.n, lane.n_failed)


def _phase_charts(host: str, lanes: Sequence[LaneResult]) -> list[tuple[str, Markup]]:
    """A captioned chart for each kind of start and each order of magnitude."""
    drawn = []
    for title, kind in (("Restores", "restore"), ("Cold starts", "cold")):
        groups = charts.scale_groups([lane for lane in lanes if lane.kind == kind])[::-1]
        for number, group in enumerate(groups, start=1):
            chart = charts.phases(f"phases-{kind}-{number}-{host}", group)
            medians = [human_seconds(lane.median) for lane in (group[0], group[-1]) if lane.median is not None]
            span = f"{title}, {' to '.join(dict.fromkeys(medians))}"
            drawn.append((title if len(groups) == 1 else span, Markup(chart)))
    return drawn


def manifest_sections(manifest: RunManifest) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the manifest says of controller, server and lanes, as titled rows."""
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
