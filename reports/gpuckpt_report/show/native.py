# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of what tests/native/bench_restore.py and tests/native/cuda/gpu_bench.py measured: one per size of memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuckpt_report.analysis import stats
from gpuckpt_report.errors import ReportError
from gpuckpt_report.show.tables import times_interval
from gpuckpt_report.text.table import Table
from gpuckpt_report.text.units import seconds, times

BASELINE = "stock"
DRIVER_SPANS = ("cuda-restore", "cuda-unlock")
_MISSING = "–"


@dataclass(frozen=True)
class Sample:
    """One restore: which memory, by which variant, in which round; all times in seconds."""

    memory: str
    variant: str
    round: tuple[int, int]
    ok: bool
    restore_s: float
    driver_s: float | None
    all_read_s: float | None


def read(files: Sequence[Path]) -> list[Sample]:
    """The restores that are no warm-up.

    :param files: .jsonl files; each may hold several runs, one after another
    :raises ReportError: if a line is no sample of either bench, or no restore is left
    """
    samples = []
    run = 0
    for file in files:
        run += 1
        for number, record in _records(file):
            try:
                if record.get("kind") == "manifest":
                    run += 1
                elif (sample := _sample(record, run)) is not None:
                    samples.append(sample)
            except (KeyError, TypeError, ValueError) as error:
                raise ReportError(f"{file}:{number}: no sample of a native bench: {error!r}") from error
    if not samples:
        raise ReportError("no restores in " + ", ".join(map(str, files)))
    return samples


def tables(samples: Sequence[Sample]) -> dict[str, Table]:
    """Memory → its table, ratios paired by round; variants by their medians, slowest first."""
    return {memory: _table(group) for memory, group in _grouped(samples, lambda sample: sample.memory).items()}


def _records(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ReportError(f"{file}:{number}: no JSON: {error}") from error
        if not isinstance(record, dict):
            raise ReportError(f"{file}:{number}: no JSON object")
        yield number, record


def _sample(record: Mapping[str, Any], run: int) -> Sample | None:
    if record.get("warmup") or record.get("kind") == "dump" or record.get("leak_check"):
        return None
    if "criu_s" in record:
        return Sample(
            memory=f"{record['gib']:g} GiB on the GPU",
            variant=record["variant"],
            round=(run, record["round"]),
            ok=record["ok"],
            restore_s=record["criu_s"],
            driver_s=_covered(record["spans"], DRIVER_SPANS),
            all_read_s=None,
        )
    return Sample(
        memory=f"{record['gib']:g} GiB, {record['kind']}, {record['cache']}",
        variant=record["variant"],
        round=(run, record["iteration"]),
        ok=record["correct"],
        restore_s=record["restore_s"],
        driver_s=None,
        all_read_s=record["all_memory_read_s"],
    )


def _covered(spans: Sequence[Mapping[str, Any]], names: Sequence[str]) -> float | None:
    """Seconds from the first start to the last end of the spans of each name, added up; None where none was logged."""
    total = None
    for name in names:
        if named := [span for span in spans if span["name"] == name]:
            length = max(span["end"] for span in named) - min(span["start"] for span in named)
            total = (total or 0.0) + length
    return total


def _grouped(samples: Sequence[Sample], key: Callable[[Sample], str]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(key(sample), []).append(sample)
    return groups


def _table(samples: Sequence[Sample]) -> Table:
    variants = _grouped(samples, lambda sample: sample.variant)
    good = {name: [sample for sample in group if sample.ok] for name, group in variants.items()}
    slowest = sorted(good, key=lambda name: -stats.median([s.restore_s for s in good[name]]) if good[name] else 1.0)
    slowest.sort(key=lambda name: name != BASELINE)
    columns = ["variant", "restore s", "least … most", "n", "failed", f"× faster than {BASELINE}", "95 % interval"]
    with_driver = any(sample.driver_s is not None for sample in samples)
    with_reading = any(sample.all_read_s is not None for sample in samples)
    columns += ["driver's s", "CRIU's own s"] * with_driver + ["until all was read s"] * with_reading
    rows = []
    for name in slowest:
        restores = [sample.restore_s for sample in good[name]]
        row = [
            name,
            _median(restores),
            f"{seconds(min(restores))} … {seconds(max(restores))}" if restores else _MISSING,
        ]
        row += [str(len(restores)), str(len(variants[name]) - len(restores)), *_speedup(name, good)]
        if with_driver:
            known = [(s.restore_s, s.driver_s) for s in good[name] if s.driver_s is not None]
            row += [_median([driver for _, driver in known]), _median([total - driver for total, driver in known])]
        if with_reading:
            row.append(_median([s.all_read_s for s in good[name] if s.all_read_s is not None]))
        rows.append(row)
    return Table(columns, rows)


def _median(values: Sequence[float]) -> str:
    return seconds(stats.median(values)) if values else _MISSING


def _speedup(name: str, good: Mapping[str, Sequence[Sample]]) -> tuple[str, str]:
    if name == BASELINE:
        return "1", _MISSING
    ours, theirs = ({sample.round: sample.restore_s for sample in good.get(key, ())} for key in (name, BASELINE))
    if not ours or not theirs:
        return _MISSING, _MISSING
    ratio = stats.paired_ratio([(theirs.get(key), ours.get(key)) for key in sorted(ours.keys() | theirs.keys())])
    return times(ratio.value), times_interval(ratio)
