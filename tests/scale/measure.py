#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What it costs to take in and to render the records of many hosts. The records are fake, and say so.

    measure.py [--hosts 30,100,300,1000] [--folder build/scale] [--markdown]

Each size is a run as a play leaves it: a manifest, and one file of records a host. Both commands run in processes of
their own, whose time and greatest memory the kernel tells.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/unit/reports"))

import synthetic  # noqa: E402

from gpuckpt_report.records.schema import Record  # noqa: E402
from gpuckpt_report.text.table import Table  # noqa: E402

ROUNDS = 14  # of four lanes, with what comes before them 61 records a host
RECORDS_A_HOST = 61
SPREAD_BETWEEN, SPREAD_WITHIN = 0.05, 0.03


@dataclass(frozen=True)
class Cost:
    """What one command took: seconds on the clock, seconds of processors, and its greatest memory in bytes."""

    wall_s: float
    processor_s: float
    peak_bytes: int


def records_of(host: str, draw: random.Random) -> Iterator[dict[str, Any]]:
    """61 records of one host, which differs from the others a little in all it does."""
    factor = draw.lognormvariate(0, SPREAD_BETWEEN)
    for record in synthetic.run_records(iterations=ROUNDS - 1, failures=0):
        seconds = draw.lognormvariate(0, SPREAD_WITHIN) * factor
        moments = {name: value * seconds for name, value in record["t"].items()}
        phases = {
            name: {edge: place * seconds for edge, place in span.items()} for name, span in record["phases"].items()
        }
        yield record | {"host": host, "t": moments, "phases": phases, "conditions": conditions(draw)} | bulk(record)


def bulk(record: dict[str, Any]) -> dict[str, Any]:
    """What makes a record as large as those of vLLM on a GPU: tokens, checks, counts of CRIU's log, commands."""
    return {
        "canary": {"tokens": [f" fake{number}" for number in range(16)], "equal": record["checks"].get("canary_equal")},
        "checks": record["checks"] | {f"fake_check_{number}": True for number in range(8)},
        "stats": {"criu": {f"fake_count_{number}": number * 12_345 for number in range(40)}},
        "actions": [["podman", "container", "restore", "--fake", f"--option-{number}"] for number in range(6)],
    }


def conditions(draw: random.Random) -> dict[str, Any]:
    """A calm machine's."""
    return {"calibration_s": draw.uniform(0.1, 0.102), "load_before": draw.uniform(0.1, 0.6), "processors": 8}


def write_fleet(folder: Path, hosts: int) -> None:
    """A run's folder as a play leaves it."""
    names = [f"node{number:04}" for number in range(1, hosts + 1)]
    known = {"host": {"kernel": "6.0-fake", "cpu": {"model": "Fake CPU", "count": 8}}} | {
        "packages": {f"fake-package-{number}": "1.0" for number in range(150)}
    }
    draw = random.Random(hosts)
    schedule = [[record["lane"], record["iteration"]] for record in synthetic.run_records(ROUNDS - 1, 0)[5:]]
    manifest = synthetic.manifest(
        iterations=ROUNDS - 1,
        hosts=dict.fromkeys(names, known),
        hosts_asked=names,
        schedule=dict.fromkeys(names, schedule),
    )
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in names:
        incoming = folder / "incoming" / name
        incoming.mkdir(parents=True)
        # A module writes every field, whether it has a value or not.
        lines = [Record.model_validate_json(json.dumps(record)).model_dump_json() for record in records_of(name, draw)]
        assert len(lines) == RECORDS_A_HOST, len(lines)
        (incoming / "records.jsonl").write_text("\n".join(lines) + "\n")


def cost_of(*command: str) -> Cost:
    """Runs a command of ``gpuckpt`` to its end in a process of its own.

    :raises subprocess.CalledProcessError: if it fails
    """
    watcher = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime, used.ru_maxrss)"
    )
    begin = time.monotonic()
    words = [sys.executable, "-c", watcher, sys.executable, "-m", "gpuckpt_report", *command]
    said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return Cost(time.monotonic() - begin, float(said[0]), int(said[1]) * 1024)


def measure(folder: Path, hosts: int) -> list[str]:
    """One row of the table: a fleet is made, taken in and rendered, and removed again."""
    shutil.rmtree(folder, ignore_errors=True)
    write_fleet(folder, hosts)
    taken, rendered = cost_of("ingest", str(folder)), cost_of("render", str(folder))
    page = (folder / "report.html").stat().st_size
    shutil.rmtree(folder)
    both = taken.wall_s + rendered.wall_s
    return [
        f"{hosts}",
        f"{hosts * RECORDS_A_HOST}",
        f"{taken.wall_s:.1f}",
        f"{rendered.wall_s:.1f}",
        f"{both:.1f}",
        f"{taken.processor_s + rendered.processor_s:.1f}",
        f"{1000 * (taken.processor_s + rendered.processor_s) / hosts:.0f}",
        f"{max(taken.peak_bytes, rendered.peak_bytes) / 2**20:.0f}",
        f"{page / 1e3:.0f}",
    ]


HEADINGS = [
    "hosts",
    "records",
    "ingest s",
    "render s",
    "both s",
    "processor s",
    "processor ms a host",
    "peak memory MiB",
    "first page kB",
]


def main() -> int:
    """Measures each size and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", default="30,100,300,1000", help="sizes, joined by commas (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "scale")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/scale.md has it")
    arguments = parser.parse_args()
    rows = [measure(arguments.folder / size, int(size)) for size in arguments.hosts.split(",")]
    table = Table(HEADINGS, rows)
    print(table.markdown() if arguments.markdown else table.plain())
    return 0


if __name__ == "__main__":
    sys.exit(main())
