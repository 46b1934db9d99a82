# SPDX-License-Identifier: GPL-3.0-or-later
"""A run made of samples that no play gathered: native benchmarks, which write the same records on their own."""

from __future__ import annotations

import json
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpuckpt_report.errors import ReportError
from gpuckpt_report.schema import MEASURED_KINDS, GitState, Lane, Metric, Record, RunManifest, explain
from gpuckpt_report.store import RunFolder, read_records


def create(
    runs: Path,
    samples: Path,
    *,
    metric: Metric,
    seed: int | str,
    description: str | None,
    provenance: Mapping[str, Path],
    project: Path,
) -> RunFolder:
    """Make the folder of a run: its manifest from the samples, and the samples as its records.

    :param runs: folder in which to make the run, named after the samples' run_id
    :param samples: file with one record a line
    :param metric: headline figure, ``T4`` or ``T1``
    :param seed: what ordered the samples
    :param provenance: host → JSON file that describes it, as ckpt_provenance returns it
    :param project: checkout whose commit was measured
    :raises ReportError: if a sample is invalid, the samples are of several runs, or the run exists
    """
    records, errors = read_records(samples)
    run_ids = sorted({record.run_id for record in records})
    if len(run_ids) > 1:
        errors.append(f"{samples} holds records of several runs: {', '.join(run_ids)}")
    if not any(record.kind in MEASURED_KINDS for record in records):
        errors.append(f"{samples} holds no valid record of kind {' or '.join(MEASURED_KINDS)}")
    if errors:
        raise ReportError("\n  ".join(["no run was made:", *errors]))
    run = RunFolder(runs / run_ids[0])
    if run.path.exists():
        raise ReportError(f"{run.path} exists: give the samples a new run_id, or remove that folder")
    manifest = _manifest(records, metric, seed, description, provenance, project)
    run.path.mkdir(parents=True)
    run.manifest_path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    run.append(records)
    return run


def _manifest(
    records: Sequence[Record],
    metric: Metric,
    seed: int | str,
    description: str | None,
    provenance: Mapping[str, Path],
    project: Path,
) -> RunManifest:
    hosts = sorted({record.host for record in records})
    return RunManifest(
        schema_version=1,
        run_id=records[0].run_id,
        started_at=min(record.started_at for record in records),
        finished_at=max(record.started_at for record in records),
        seed=seed,
        git=_git_state(project),
        controller={"python": platform.python_version()},
        hosts={host: _read_provenance(provenance[host]) if host in provenance else {} for host in hosts},
        lanes=_lanes(records),
        iterations=_least_iterations(records),
        metric=metric,
        description=description,
        fake=any(record.fake for record in records),
    )


def _measured(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.kind in MEASURED_KINDS and not record.warmup]


def _lanes(records: Sequence[Record]) -> list[Lane]:
    """A lane for each name, in the order of appearance, as its first record describes it."""
    firsts = {record.lane: record for record in reversed(_measured(records))}
    order = dict.fromkeys(record.lane for record in _measured(records))
    return [_lane(firsts[name]) for name in order]


def _lane(record: Record) -> Lane:
    lane = {
        "name": record.lane,
        "start": record.kind,
        "runtime": "process",
        "build": record.build.name if record.build else "current",
        "switches": record.switches,
        "slimming": record.slimming,
        "source": record.source or "store",
    }
    try:
        return Lane.model_validate(lane)
    except ValidationError as error:
        raise ReportError("\n  ".join([f"no run was made: lane {record.lane}:", *explain(error)])) from None


def _least_iterations(records: Sequence[Record]) -> int:
    return min(Counter((record.host, record.lane) for record in _measured(records)).values())


def _read_provenance(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"provenance {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ReportError(f"provenance {path} must hold a JSON object")
    return content


def _git_state(project: Path) -> GitState:
    try:
        sha = _git(project, "rev-parse", "HEAD")
        return GitState(sha=sha, dirty=bool(_git(project, "status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.CalledProcessError):
        return GitState()


def _git(project: Path, *arguments: str) -> str:
    command = ["git", "-C", str(project), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
