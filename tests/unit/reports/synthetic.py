# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that nobody measured: every record and the manifest say ``fake``, so that it can never be published."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOST = "node1"
MIB = 2**20

# seconds around which the fake times lie, slimming, bytes of GPU memory
LANES: dict[str, tuple[float, str, int | None]] = {
    "cold": (54.0, "none", None),
    "podman-stock": (12.1, "none", 12 * 2**30),
    "podman-mapped": (3.6, "none", 12 * 2**30),
    "sleep1-mapped": (1.7, "sleep1", 3 * 2**30),
}


def manifest(run_id: str = "fake-run", iterations: int = 5, **changes: Any) -> dict[str, Any]:
    """A manifest with the lanes above."""
    lanes = [
        {"name": name, "start": "cold" if name == "cold" else "restore", "runtime": "podman", "slimming": slimming}
        for name, (_, slimming, _) in LANES.items()
    ]
    return {
        "schema_version": 1,
        "run_id": run_id,
        "started_at": START.isoformat(),
        "finished_at": (START + timedelta(minutes=9)).isoformat(),
        "seed": 20260102,
        "git": {"sha": "0" * 40, "dirty": False},
        "controller": {"python": "3.11.0"},
        "hosts": {HOST: {"kernel": "6.0-fake", "cpu": {"model": "Fake <CPU>", "cores": 2}}},
        "lanes": lanes,
        "iterations": iterations,
        "server": {"name": "gpuckpt-reference"},
        "fake": True,
    } | changes


def record(seq: int, lane: str, iteration: int, seconds: float, **changes: Any) -> dict[str, Any]:
    """An ok record of a lane that was ready after so many seconds."""
    cold = lane == "cold"
    gpu = LANES.get(lane, (0, "none", None))[2]
    engine = 0.7 * seconds
    restore_phases = {"runtime": (0.0, 0.1), "criu": (0.1, engine), "cuda": (0.3 * engine, engine)}
    phases = {"load": (0.1, engine)} if cold else restore_phases
    return {
        "schema_version": 1,
        "run_id": "fake-run",
        "host": HOST,
        "seq": seq,
        "lane": lane,
        "kind": "cold" if cold else "restore",
        "iteration": iteration,
        "warmup": False,
        "status": "ok",
        "started_at": (START + timedelta(seconds=seq)).isoformat(),
        "t": {"T0": 0.0, "T1": engine, "T3": 0.9 * seconds, "T4": seconds, "T5": 1.05 * seconds},
        "phases": {name: {"start": start, "end": end} for name, (start, end) in phases.items()}
        | {"health": {"start": engine, "end": 0.9 * seconds}, "unattributed": {"start": 0.0, "end": 0.1 * seconds}},
        "bytes": {"gpu": gpu, "images_total": None if gpu is None else gpu + 900 * MIB},
        "checks": {"exit_zero": True, "canary_equal": None if cold else True},
        "fake": True,
    } | changes


def failed(seq: int, lane: str, iteration: int, **changes: Any) -> dict[str, Any]:
    """A failed record."""
    verdict = {
        "status": "failed",
        "reason": "canary_differs",
        "message": "the canary's tokens differ from those before the checkpoint: take a new one",
        "t": {"T0": 0.0, "T1": 1.0},
        "phases": {},
        "checks": {"canary_equal": False},
        "log_tail": ["(00.010) Error <fake>: page 1", "(00.020) done"],
        "actions": [["podman", "container", "restore", "x"]],
    }
    return record(seq, lane, iteration, 1.0) | verdict | changes


def checkpoint(seq: int, lane: str, gpu: int) -> dict[str, Any]:
    """A golden checkpoint."""
    images = {"pages": gpu + 800 * MIB, "mm": 3 * MIB, "core": MIB, "files": 40_000, "rootfs": 96 * MIB}
    return record(
        seq,
        lane,
        0,
        5.0,
        kind="checkpoint",
        phases={},
        bytes={"images": images, "images_total": sum(images.values()), "gpu": gpu},
        t={"T0": 0.0, "T1": 10.8},
    )


def first_start(seq: int, seconds: float, **changes: Any) -> dict[str, Any]:
    """The start of the server that the checkpoints are taken of."""
    return record(seq, "podman-shared-0123abcd", 1, seconds, kind="cold", warmup=True, **changes)


def run_records(iterations: int = 5, failures: int = 1) -> list[dict[str, Any]]:
    """Checkpoints, warm-up requests, a floor, the first start, a warm-up round, measured rounds, and failures in the last lane but one."""
    draw = random.Random(1)
    names = list(LANES)
    records = [
        checkpoint(1, "podman-stock", 12 * 2**30),
        checkpoint(2, "sleep1-mapped", 3 * 2**30),
        record(3, "cold", 0, 1.0, kind="probe", phases={}, requests=[
            {"ttft_s": 0.02 + 0.001 * number, "duration_s": 0.2, "tokens": 16} for number in range(5)
        ]),
        record(4, "cold", 0, 1.0, kind="floor", phases={}, t={"T0": 0.0}, floor={
            "context": {"value": 0.4, "unit": "s"},
            "copy_h2d": {"value": 52e9, "unit": "B/s"},
            "copy_h2d_pageable": {"value": 6.5e9, "unit": "B/s"},
            "store_read_1": {"value": 2.4e9, "unit": "B/s"},
            "store_read_8": {"value": 14e9, "unit": "B/s"},
        }),
        first_start(5, 93.2),
    ]  # fmt: skip
    seq = 10
    for round_number in range(iterations + 1):
        for name in draw.sample(names, len(names)):
            seconds = LANES[name][0] * draw.uniform(0.93, 1.1)
            seq += 1
            warmup = round_number == 0
            entry = record(seq, name, round_number or 1, seconds * (5 if warmup else 1), warmup=warmup)
            if name == "podman-mapped" and 0 < round_number <= failures:
                entry = failed(seq, name, round_number)
            records.append(entry)
    return records


def write_run(path: Path, records: list[dict[str, Any]], **manifest_changes: Any) -> Path:
    """Lays out a run's folder as the play leaves it: manifest, and each node's records under incoming/."""
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps(manifest(**manifest_changes)))
    for entry in records:
        folder = path / "incoming" / entry["host"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{entry['seq']:06}-{entry['kind']}.json").write_text(json.dumps(entry))
    return path


def on_host(records: list[dict[str, Any]], host: str, factor: float = 1.0, seed: int = 0) -> list[dict[str, Any]]:
    """The same records of another host, which takes so many times as long, give or take 3 % a start."""
    draw = random.Random(f"{host}/{seed}")
    moved = []
    for entry in records:
        share = factor * draw.lognormvariate(0, 0.03)
        times = {name: seconds * share for name, seconds in entry["t"].items()}
        phases = {name: {edge: place * share for edge, place in span.items()} for name, span in entry["phases"].items()}
        moved.append(entry | {"host": host, "t": times, "phases": phases})
    return moved


def fleet_records(names: list[str], iterations: int = 5, spread: float = 0.05) -> list[dict[str, Any]]:
    """Records of many hosts, which differ by this standard deviation of their logarithms."""
    draw = random.Random(len(names))
    alike = run_records(iterations, failures=0)
    return [entry for name in names for entry in on_host(alike, name, draw.lognormvariate(0, spread))]


def fleet_manifest(names: list[str], **changes: Any) -> dict[str, Any]:
    """What the manifest of a run on many hosts says differently; half of them have another kernel."""
    known = {name: {"kernel": f"6.{number % 2}-fake", "cpu": "Fake CPU"} for number, name in enumerate(names)}
    return {"hosts": known, "hosts_asked": names} | changes
