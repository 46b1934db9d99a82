# SPDX-License-Identifier: GPL-3.0-or-later
"""Published runs, and the tables of README and docs/results.md that are made of them."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path

from gpuckpt_report import PROJECT
from gpuckpt_report.analysis.run import HostAnalysis, LaneResult, RunAnalysis
from gpuckpt_report.errors import ReportError
from gpuckpt_report.records.store import RunFolder
from gpuckpt_report.show import fleet_page, subject
from gpuckpt_report.show.headline import headline
from gpuckpt_report.show.tables import INTERVAL_OR_VALUES, interval_or_values, times_interval
from gpuckpt_report.text.markdown import Markdown, escaped
from gpuckpt_report.text.table import Table
from gpuckpt_report.text.units import human_seconds, times

# The first mark may name the runs that are shown, in that order: NAME, or NAME:LANE,LANE for a short table of these lanes.
# Where a run is shown whole, the runs without a table are linked. Without names all runs are shown.
BEGIN = re.compile(r"<!-- headline:begin(?P<names>(?: [a-z0-9.-]+(?::[a-z0-9,-]+)?)*) -->")
END = "<!-- headline:end -->"
NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
Published = tuple[Path, RunAnalysis]
PROSE_WIDTH = 110
TRUTH = ("manifest.json", "records.jsonl")


@dataclass(frozen=True)
class Shown:
    """A published run with a table in a page: of the lanes named, or of all where there are no names."""

    folder: Path
    analysis: RunAnalysis
    lanes: tuple[str, ...] = ()


def publish(run: RunFolder, analysis: RunAnalysis, name: str, published: Path) -> Path:
    """Copies manifest, records and report of a run into ``published/name``, and returns that folder.

    :raises ReportError: if the run is fake, incomplete or of uncommitted code, or the name is taken: all reasons
    """
    target = published / name
    reasons = _objections(run, analysis)
    if not NAME.fullmatch(name):
        reasons.append(f"the name {name!r} may only hold small letters, digits, dots and hyphens")
    elif target.exists():
        reasons.append(f"{target} exists: choose another name, or remove it first")
    if reasons:
        raise ReportError("\n  ".join([f"run {analysis.manifest.run_id} cannot be published:", *reasons]))
    target.mkdir(parents=True)
    for file in TRUTH:
        shutil.copyfile(run.path / file, target / file)
    fleet_page.write_report(RunFolder(target), analysis)
    return target


def render_anew(analyses: dict[Path, RunAnalysis]) -> None:
    """Writes the reports of published runs again, from their records, which stay as they are.

    :param analyses: published folder → what it says
    """
    for folder, analysis in analyses.items():
        fleet_page.write_report(RunFolder(folder), analysis)


def _objections(run: RunFolder, analysis: RunAnalysis) -> list[str]:
    manifest = analysis.manifest
    reasons = []
    if analysis.fake:
        reasons.append("it holds fake records, which nobody measured")
    if manifest.git.sha is None or manifest.git.dirty is None:
        reasons.append("its manifest names no commit: measure from a git checkout")
    elif manifest.git.dirty:
        reasons.append("it was measured with uncommitted changes: commit, and measure again")
    if manifest.finished_at is None:
        reasons.append("it is not finished: continue it with the same gpuckpt_run_id")
    if any(run.rejected_path.glob("**/*")):
        reasons.append(f"records of it were rejected, see {run.rejected_path}: fix their cause, and measure again")
    if any(str(PROJECT) in (run.path / file).read_text(encoding="utf-8") for file in TRUTH):
        reasons.append(f"it mentions {PROJECT}, a path of this machine that means nothing to readers")
    return reasons + [
        f"lane {lane} has {done} of {wanted} iterations on {host.host}: continue the run"
        for host in analysis.hosts
        for lane, (done, wanted) in host.missing.items()
    ]


def update_page(page: Path, analyses: dict[Path, RunAnalysis]) -> None:
    """Rewrites a page's section between the two marks from the published runs.

    :param page: README.md or docs/results.md
    :param analyses: published folder → what it says
    :raises ReportError: if the page or its marks are missing, or a mark names what is not published
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    marks = list(BEGIN.finditer(text))
    if len(marks) != 1 or text.count(END) != 1 or marks[0].start() > text.index(END):
        raise ReportError(
            f"{page} needs one line <!-- headline:begin --> and below it one line {END}; the table goes between them"
        )
    # What the project is for comes first: runs on GPUs, of these the one that compares most.
    ordered = sorted(
        analyses.items(), key=lambda item: (not _has_gpu(item[1]), -len(item[1].manifest.lanes), item[0].name)
    )
    shown = _choose(ordered, marks[0]["names"].split())
    parts = [_section(one, page.parent) for one in shown]
    linked = [folder for folder, _ in ordered if folder not in {one.folder for one in shown}]
    if linked and any(not one.lanes for one in shown):
        links = (f"[{folder.name}]({_relative(folder, page.parent)}/report.md)" for folder in linked)
        parts.append(f"Other published runs: {', '.join(links)}.")
    section = "\n\n".join(parts) or "No run has been published yet."
    before, after = text[: marks[0].end()], text[text.index(END) :]
    page.write_text(f"{before}\n{section}\n{after}", encoding="utf-8")


def _choose(ordered: list[Published], names: list[str]) -> list[Shown]:
    """The runs that have a table; raises ReportError for a run or a lane that is not published."""
    if not names:
        return [Shown(folder, analysis) for folder, analysis in ordered]
    by_name = {folder.name: (folder, analysis) for folder, analysis in ordered}
    wanted = {name: tuple(filter(None, lanes.split(","))) for name, _, lanes in (one.partition(":") for one in names)}
    if unknown := [name for name in wanted if name not in by_name]:
        there = ", ".join(sorted(by_name))
        raise ReportError(
            f"the mark of the headline names {', '.join(unknown)}, which is not published (there are: {there})"
        )
    shown = [Shown(*by_name[name], lanes) for name, lanes in wanted.items()]
    for one in shown:
        known = {lane.name for host in one.analysis.hosts for lane in host.lanes}
        if strange := [lane for lane in one.lanes if lane not in known]:
            raise ReportError(f"the mark of the headline names {', '.join(strange)}, no lane of {one.folder.name}")
    return shown


def _relative(folder: Path, root: Path) -> str:
    return Path(os.path.relpath(folder, root)).as_posix()


def _section(shown: Shown, root: Path) -> str:
    analysis, place = shown.analysis, _relative(shown.folder, root)
    commit = (analysis.manifest.git.sha or "")[:12]
    title = escaped(analysis.manifest.description or shown.folder.name)
    source = f"[records]({place}/records.jsonl) · [report]({place}/report.md) · [manifest]({place}/manifest.json)"
    parts = [_prose(f"**{title}** ({analysis.manifest.started_at:%Y-%m-%d}, commit `{commit}`; {source})")]
    for host in analysis.hosts:
        parts.append(_prose(escaped(_node(analysis, host.host))))
        if not shown.lanes:  # the sentence speaks of all lanes
            parts.append(_prose(escaped(headline(host, analysis.metric_name))))
        parts.append(_table(host, shown, f"{place}/records.jsonl").markdown())
    return "\n\n".join(parts)


def _prose(text: str) -> str:
    # a link's address breaks at none of its hyphens
    return textwrap.fill(text, width=PROSE_WIDTH, break_long_words=False, break_on_hyphens=False)


def _has_gpu(analysis: RunAnalysis) -> bool:
    return any(host.get("gpu") for host in analysis.manifest.hosts.values())


def _node(analysis: RunAnalysis, name: str) -> str:
    """One line on where the figures are from, of what the manifest knows."""
    known = analysis.manifest.hosts.get(name, {})
    packages = known.get("packages") or {}
    parts = [subject.machine(known)] + [f"{one} {packages[one]}" for one in ("vllm", "torch") if one in packages]
    return f"{name}: " + (", ".join(part for part in parts if part) or "the manifest does not describe it") + "."


def _table(host: HostAnalysis, shown: Shown, records: str) -> Table:
    metric = shown.analysis.metric_name
    headings = ["lane", f"median, {metric}", INTERVAL_OR_VALUES, "n", "failed", "× faster than baseline"]
    lanes = [lane for lane in host.lanes if not shown.lanes or lane.name in shown.lanes]
    if any(lane.floor for lane in lanes):
        headings.append("floor")
    return Table(headings, [_row(lane, records, "floor" in headings) for lane in lanes])


def _row(lane: LaneResult, records: str, with_floor: bool) -> list[str]:
    name = f"{lane.name} (baseline)" if lane.is_baseline else lane.name
    median = "–" if lane.median is None else Markdown(f"[{human_seconds(lane.median)}]({records})")
    row = [
        name,
        median,
        interval_or_values(lane, human_seconds),
        str(lane.n),
        str(lane.n_failed),
        "1" if lane.is_baseline else _speedup(lane),
    ]
    if with_floor:
        row.append("–" if lane.floor is None else human_seconds(lane.floor))
    return row


def _speedup(lane: LaneResult) -> str:
    if lane.speedup is None:
        return "–"
    bounds = "" if lane.speedup.interval is None else f" ({times_interval(lane.speedup)})"
    return times(lane.speedup.value) + bounds
