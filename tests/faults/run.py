#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A campaign of faults on real servers: what is lost, wrong, hung or left behind.

    run.py [--kinds REGEX] [--trials N] [--seconds S] [--seed N] [--out FILE]     trials, drawn in turn from the kinds
    run.py --report FILE... [--write-docs FILE]                                   the table of what was found

Runs on a provisioned node of its own only, since it kills whatever bears the name of a tool (`make test-faults` makes one). A trial that
did not reach its victim in time is tried again and not counted. Exit status 1 if anything was found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kinds import Trial, all_kinds
from world import Outcome, World, make_weights

WEIGHTS_MIB = 16
FINDINGS = ("lost", "wrong", "hung", "left")
TABLE = re.compile(r"(<!-- table: made by tests/faults/run.py -->\n).*?(<!-- end of table -->)", re.DOTALL)


def trials(pattern: str, seed: int) -> Iterator[tuple[str, str, str, Trial, int]]:
    """Kinds in turn, each trial with a seed of its own, without end."""
    kinds = [kind for kind in all_kinds() if re.search(pattern, kind[0])]
    if not kinds:
        raise SystemExit(f"run.py: no kind matches {pattern}. There are: {', '.join(kind[0] for kind in all_kinds())}")
    number = seed * 1_000_000
    while True:
        for name, runtime, build, trial in kinds:
            number += 1
            yield name, runtime, build, trial, number


def attempt(name: str, runtime: str, build: str, trial: Trial, seed: int, weights: Path) -> Outcome:
    """One trial from start to clean node."""
    outcome = Outcome(name, seed)
    began = time.monotonic()
    world = World(runtime, build, weights, outcome)
    try:
        trial(world)
    except Exception:  # the campaign goes on, and the trial counts as a finding
        outcome.wrong.append(traceback.format_exc(limit=3))
    finally:
        world.clean()
    outcome.seconds = round(time.monotonic() - began, 2)
    return outcome


def campaign(options: argparse.Namespace) -> int:
    """Runs trials until their number or the time is reached; returns how many found something."""
    weights = make_weights(Path("/var/tmp/gpuckpt-faults-weights.bin"), WEIGHTS_MIB)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds if options.seconds else float("inf")
    done = found = 0
    with options.out.open("a", encoding="utf-8") as out:
        for name, runtime, build, trial, seed in trials(options.kinds, options.seed):
            if done >= options.trials or time.monotonic() >= deadline:
                break
            outcome = attempt(name, runtime, build, trial, seed, weights)
            out.write(json.dumps(asdict(outcome)) + "\n")
            out.flush()
            done += outcome.struck
            findings = [f"{kind}: {text}" for kind in FINDINGS for text in getattr(outcome, kind)]
            found += bool(findings)
            state = "; ".join(findings) or ("ok" if outcome.struck else "not reached")
            print(f"{done:4} {name:<40} {outcome.seconds:6.1f} s  {state}", flush=True)
    print(f"{done} trials with seed {options.seed}, {found} with findings; {options.out}")
    return found


def report(files: list[Path]) -> str:
    """The table of kinds and findings, in Markdown."""
    outcomes = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    kinds: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        row = kinds.setdefault(outcome["kind"], dict.fromkeys(("tried", *FINDINGS), 0))
        if outcome["struck"] or any(outcome[kind] for kind in FINDINGS):
            row["tried"] += 1
        for kind in FINDINGS:
            row[kind] += bool(outcome[kind])
    lines = ["| kind | tried | lost | wrong | hung | left |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {name} | " + " | ".join(str(row[key]) for key in ("tried", *FINDINGS)) + " |"
        for name, row in sorted(kinds.items())
    ]
    total = {key: sum(row[key] for row in kinds.values()) for key in ("tried", *FINDINGS)}
    lines.append("| **all** | " + " | ".join(f"**{total[key]}**" for key in ("tried", *FINDINGS)) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs or report; returns the exit status."""
    parser = argparse.ArgumentParser(description="Faults on real servers: what is lost, wrong, hung or left behind.")
    parser.add_argument("--kinds", default="", metavar="REGEX", help="kinds whose name matches; all when not given")
    parser.add_argument(
        "--trials", type=int, default=len(list(all_kinds())), metavar="N", help="trials in all (one of each kind)"
    )
    parser.add_argument(
        "--seconds", type=float, default=0, metavar="S", help="begin no further trial after this time (no end)"
    )
    parser.add_argument(
        "--seed", type=int, default=int(time.time()) % 100_000, metavar="N", help="the same seed draws the same moments"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/faults/trials.jsonl"),
        metavar="FILE",
        help="outcomes are appended there",
    )
    parser.add_argument(
        "--report", type=Path, nargs="+", metavar="FILE", help="print the table of these outcomes instead"
    )
    parser.add_argument(
        "--write-docs", type=Path, metavar="FILE", help="put the table between the marks in this document"
    )
    options = parser.parse_args()
    if options.report:
        table = report(options.report)
        if options.write_docs:
            text = options.write_docs.read_text(encoding="utf-8")
            options.write_docs.write_text(TABLE.sub(lambda match: match[1] + table + match[2], text), encoding="utf-8")
        print(table, end="")
        return 0
    if "GPUCKPT_OWN_NODE" not in os.environ:
        raise SystemExit(
            "run.py: this kills tools by name, so it runs on a node of its own only: use `make test-faults`."
        )
    return int(campaign(options) > 0)


if __name__ == "__main__":
    sys.exit(main())
