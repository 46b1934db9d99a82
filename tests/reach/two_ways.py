#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one thing of the machine is worth for a restore: restores with and without it, in turn.

    two_ways.py kernel-cache|breakpoints [--pairs 15] [--out FILE]

On a provisioned node of its own. Each record is a line of FILE, as the modules write it; the table has medians and extremes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "faults"))

from world import Outcome, World, make_weights, ok

from gpuckpt_report.analysis import stats

NOTES = Path("/run/criu.kdat")
WEIGHTS_MIB = {"kernel-cache": 16, "breakpoints": 64}
# The kernel keeps what the first breakpoint needs while a restored process lives, and for a second after.
PAUSE_S = 2.0
DRIVER_SCOPE = {"CRIU_MAPPED_SCOPE": "driver", "CRIU_RESTORE_THREADS": "8"}


def kernel_cache(world: World, number: int) -> None:
    """CRIU's notes of the kernel, there or removed."""
    if number % 2:
        NOTES.unlink(missing_ok=True)


def breakpoints(world: World, number: int) -> None:
    """Tasks stopped by hardware breakpoints, or by steps from call to call; pairs begin with either in turn."""
    world.perform("stop")
    time.sleep(PAUSE_S)
    value = str((number + number // 2) % 2)
    world.criu = {"build": "patched", "switches": {**DRIVER_SCOPE, "CRIU_HW_BREAKPOINTS": value}}


def way(what: str, record: dict[str, Any]) -> str:
    """Which of the two a record is of, from the record itself."""
    if what == "kernel-cache":
        return str(record["stats"]["criu"]["kernel_cache"])
    return {"0": "stepped", "1": "breakpoints"}[record["switches"]["CRIU_HW_BREAKPOINTS"]]


def main() -> int:
    """Measures and prints; returns the exit status."""
    ways = {"kernel-cache": kernel_cache, "breakpoints": breakpoints}
    parser = argparse.ArgumentParser(description="Restores in two ways, in turn.")
    parser.add_argument("what", choices=ways)
    parser.add_argument("--pairs", type=int, default=15, metavar="N", help="restores of each kind (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="build/reach/WHAT.jsonl")
    options = parser.parse_args()
    if "GPUCKPT_OWN_NODE" not in os.environ:
        raise SystemExit("two_ways.py: changes the node, so it runs on a node of its own only: see README.md.")
    file = options.out or Path(f"build/reach/{options.what}.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    weights = make_weights(Path("/var/tmp/gpuckpt-two-ways-weights.bin"), WEIGHTS_MIB[options.what])
    world = World("process", "patched", weights, Outcome(options.what, 0))
    times: dict[str, list[float]] = {}
    try:
        world.prepare(serving=True)
        with file.open("w", encoding="utf-8") as out:
            for number in range(2 * options.pairs):
                ways[options.what](world, number)
                result = world.perform("restore", replace_running=True)
                if not ok(result) or result is None:
                    raise SystemExit(f"two_ways.py: restore {number} failed: {result}")
                record = result["record"]
                out.write(json.dumps(record) + "\n")
                times.setdefault(way(options.what, record), []).append(record["t"]["T4"])
    finally:
        world.clean()
    report(times)
    return 0


def report(times: dict[str, list[float]]) -> None:
    """Prints each way, and the ratio of the two."""
    for name, seconds in times.items():
        middle = statistics.median(seconds) * 1000
        extremes = f"{min(seconds) * 1000:.0f} … {max(seconds) * 1000:.0f}"
        print(f"{name}: n = {len(seconds)}, first token {middle:.1f} ms ({extremes})")
    (first, ours), (second, others) = sorted(times.items())
    ratio = stats.ratio(others, ours)
    if ratio.interval:
        print(f"{second} / {first}: {ratio.value:.2f} ({ratio.interval.low:.2f} … {ratio.interval.high:.2f})")


if __name__ == "__main__":
    sys.exit(main())
