#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What CRIU's notes of the kernel (/run/criu.kdat) are worth: restores with and without them, in turn.

    kernel_cache.py [--pairs 15] [--out FILE]

On a provisioned node of its own. Each record is a line of FILE, as the modules write it; the table has medians and extremes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "faults"))

from world import Outcome, World, make_weights, ok

NOTES = Path("/run/criu.kdat")
WEIGHTS_MIB = 16


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description="Restores with and without CRIU's notes of the kernel, in turn.")
    parser.add_argument("--pairs", type=int, default=15, metavar="N", help="restores of each kind")
    parser.add_argument("--out", type=Path, default=Path("build/reach/kernel-cache.jsonl"), metavar="FILE")
    options = parser.parse_args()
    if "GPUCKPT_OWN_NODE" not in os.environ:
        raise SystemExit(
            "kernel_cache.py: removes a file of the node, so it runs on a node of its own only: see README.md."
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    weights = make_weights(Path("/var/tmp/gpuckpt-kernel-cache-weights.bin"), WEIGHTS_MIB)
    world = World("process", "patched", weights, Outcome("kernel-cache", 0))
    times: dict[str, list[float]] = {"loaded": [], "probed": []}
    try:
        world.prepare(serving=True)
        with options.out.open("w", encoding="utf-8") as out:
            for number in range(2 * options.pairs):
                if number % 2:
                    NOTES.unlink(missing_ok=True)
                result = world.perform("restore", replace_running=True)
                if not ok(result) or result is None:
                    raise SystemExit(f"kernel_cache.py: restore {number} failed: {result}")
                record = result["record"]
                out.write(json.dumps(record) + "\n")
                times[record["stats"]["criu"]["kernel_cache"]].append(record["t"]["T4"])
    finally:
        world.clean()
    for state, seconds in times.items():
        middle = statistics.median(seconds) * 1000
        print(
            f"{state}: n = {len(seconds)}, first token {middle:.0f} ms ({min(seconds) * 1000:.0f} … {max(seconds) * 1000:.0f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
