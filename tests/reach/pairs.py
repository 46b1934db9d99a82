#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""How often `gpuckpt compare` raises a false alarm, and how often it finds a true slow-down, on real runs.

    pairs.py --out FILE [--seconds S] [--slow-down SHARE] [--rounds N]      measure, judge, append to FILE (JSON lines)
    pairs.py --table FILE … [--markdown]                       print what files say

`bench.yml` runs once, for the manifest. Then one short run follows another, an old side and a new one in turn. A run is
what bench.yml does, without Ansible between the restores. The same modules start the server, take its checkpoint and
restore it in the lanes `old` and `new`. With ``--slow-down`` the lane `new` of the new side is slowed: CRIU sleeps for
that share of the lane's median before it restores. That changes the build, so it runs in a node of its own alone
(README.md has the command).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpuckpt_report.analysis import noise
from gpuckpt_report.analysis import run as analysis
from gpuckpt_report.records.store import RunFolder
from gpuckpt_report.text.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from module_call import ROOT, call

BIN = Path(sys.executable).parent
HOST = "localhost"
LANES = ("old", "new")
# Old first, then new first: what drifts steadily meets both sides alike.
TURNS = ("old", "new", "new", "old")
RUNS_A_SIDE = 3
CHECKPOINT = Path("/mnt/checkpoint-ram/reach")
BUILD = Path("/opt/gpuckpt/criu/current/libexec/criu")
DELAY = Path("/run/gpuckpt-reach-delay-s")
# Every restore starts sleep, most of them for 0 s: the cost of one more program meets all lanes alike.
SLOWED = f"""#!/bin/sh
delay=0
case "$CRIU_REACH_LANE $1" in
"new restore") read -r delay <{DELAY} ;;
esac
if [ "$1" = restore ]; then sleep "$delay"; fi
exec "$0.real" "$@"
"""
ALARM, UNDECIDED = 4, 5
Line = dict[str, Any]


def main() -> int:
    """Measures, or prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON lines, appended to")
    parser.add_argument("--seconds", type=float, default=1800, help="begin no run later than that (%(default)s)")
    parser.add_argument("--slow-down", type=float, default=0.0, help="share by which the new side is slower (none)")
    parser.add_argument("--rounds", type=int, default=6, help="restores of a lane in a run (%(default)s)")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="print what FILEs say, measure nothing")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    options = parser.parse_args()
    if options.table:
        print(summary([line for file in options.table for line in read(file)], options.markdown))
        return 0
    if not options.out or "GPUCKPT_OWN_NODE" not in os.environ:
        parser.error("--out FILE is needed, and a node of its own: see tests/reach/README.md")
    with options.out.open("a", encoding="utf-8") as file:
        for line in measure(options.seconds, options.slow_down, options.rounds):
            file.write(json.dumps(line) + "\n")
            file.flush()
    print(summary(read(options.out)))
    return 0


def measure(seconds: float, slow_down: float, rounds: int) -> Iterator[Line]:
    """Yields each run, and each comparison as soon as its runs are there."""
    folder = ROOT / "build" / "reach" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    manifest = play_once(folder / "plays") | {"iterations": rounds}
    if slow_down:
        slow_the_build()
    runs: list[Line] = []
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        side = TURNS[len(runs) % len(TURNS)]
        delay = set_delay(runs, slow_down if side == "new" else 0.0)
        run = measure_once(folder / f"reach-{len(runs):03}", manifest, side, delay)
        runs.append(run)
        yield run
        yield compare(folder, "rerun", slow_down if side == "new" else 0.0, [run["run"], "--rerun", "old=new"])
        for gate, count, more in (("control", 1, ["--control", "old"]), ("runs", RUNS_A_SIDE, [])):
            if len(runs) % (2 * count) == 0:
                latest = runs[-2 * count :]
                sides = [",".join(run["run"] for run in latest if run["side"] == name) for name in LANES]
                yield compare(folder, gate, slow_down, [*sides, *more])


def play_once(folder: Path) -> Line:
    """Runs bench.yml, and returns the manifest that it wrote.

    :raises SystemExit: if it fails
    """
    command = [str(BIN / "ansible-playbook"), "bench.yml", "-e", "@tests/reach/lanes.yml"]
    command += ["-e", json.dumps({"gpuckpt_run_id": "reach", "gpuckpt_results_dir": str(folder)})]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"bench.yml ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return dict(json.loads((folder / "reach" / "manifest.json").read_text(encoding="utf-8")))


def measure_once(folder: Path, manifest: Line, side: str, delay: float) -> Line:
    """One run: a server, its checkpoint, and every lane in every round, in an order drawn anew."""
    started = time.monotonic()
    incoming = folder / "incoming" / HOST
    incoming.mkdir(parents=True)
    manifest = manifest | {"run_id": folder.name, "started_at": now(), "finished_at": None, "seed": folder.name}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    lanes = {lane["name"]: lane for lane in manifest["lanes"]}
    same = {"runtime": "process", "server": manifest["server"]}
    perform("ckpt_start", **same)
    criu = {"build": "stock", "switches": {}}
    perform("ckpt_checkpoint", **same, criu=criu, checkpoint={"name": "reach", "dir": str(CHECKPOINT)})
    draw = random.Random(folder.name)
    order = [(number, name) for number in range(1, manifest["iterations"] + 1) for name in draw.sample(LANES, 2)]
    for seq, (iteration, name) in enumerate(order, start=1):
        lane = lanes[name]
        identity = {"run_id": folder.name, "host": HOST, "seq": seq, "lane": name, "iteration": iteration}
        perform(
            "ckpt_restore",
            **same,
            criu={"build": lane["build"], "switches": lane["switches"]},
            checkpoint={"dir": str(CHECKPOINT)},
            stop_after=True,
            record=identity | {"warmup": False},
            record_path=str(incoming / f"{seq:06}-restore.json"),
        )
    shutil.rmtree(CHECKPOINT)
    run = RunFolder(folder)
    rejected = run.ingest().rejected
    if rejected:
        raise SystemExit("\n".join(rejected))
    run.finish(datetime.now(UTC))
    [host] = analysis.analyse(run).hosts
    judged = noise.judge(host)
    return {
        "what": "run",
        "run": folder.name,
        "started_at": manifest["started_at"],
        "commit": manifest["git"]["sha"],
        "side": side,
        "delay_s": delay,
        "took_s": round(time.monotonic() - started, 1),
        "values_s": {lane.name: [round(value, 5) for value in lane.values] for lane in host.lanes},
        "failed": {lane.name: lane.n_failed for lane in host.lanes},
        "noise": judged.grade,
        "reasons": judged.reasons,
    }


def perform(module: str, **options: Any) -> None:
    """Runs a module; a record of a failure is a result, too.

    :raises SystemExit: if it neither succeeded nor left a record
    """
    result = call(module, **options)
    if result.get("failed") and "record_path" not in options:
        raise SystemExit(f"{module}: {result.get('msg')}")


def now() -> str:
    """The time, as a manifest has it."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def compare(folder: Path, gate: str, slow_down: float, arguments: list[str]) -> Line:
    """What `gpuckpt compare` says, by its exit status and in JSON."""
    command = [BIN / "gpuckpt", "--runs", folder, "compare", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, ALARM, UNDECIDED):
        raise SystemExit(f"gpuckpt compare ended with {done.returncode}: {done.stderr}")
    changes = json.loads(done.stdout)["changes"]
    keys = ("lane", "verdict", "ratio", "interval", "could_find")
    return {
        "what": "comparison",
        "gate": gate,
        "slow_down": slow_down,
        "sides": arguments,
        "exit": done.returncode,
        "changes": [{key: change[key] for key in keys} for change in changes if change["verdict"] != "control"],
    }


def slow_the_build() -> None:
    """Puts a program before CRIU's that sleeps before the restores of one lane."""
    program = BUILD.resolve()
    program.rename(program.with_name("criu.real"))
    program.write_text(SLOWED, encoding="utf-8")
    program.chmod(0o755)


def set_delay(runs: list[Line], share: float) -> float:
    """Tells the slowed build how long to sleep, by the medians of the lane where it was not slowed; returns the seconds."""
    medians = [statistics.median(run["values_s"]["new"]) for run in runs if not run["delay_s"]]
    delay = round(share * statistics.median(medians), 4) if share else 0.0
    DELAY.write_text(f"{delay}\n", encoding="utf-8")
    return delay


def read(path: Path) -> list[Line]:
    """The lines of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(lines: list[Line], markdown: bool = False) -> str:
    """The table, and how many runs it is made of, calm or noisy."""
    runs = [line for line in lines if line["what"] == "run"]
    grades = Counter(line["noise"] for line in runs)
    graded = ", ".join(f"{count} {grade}" for grade, count in sorted(grades.items()))
    made = table(lines)
    return f"{made.markdown() if markdown else made.plain()}\n\n{len(runs)} runs: {graded}."


def table(lines: list[Line]) -> Table:
    """Each way to compare, with and without a slow-down: how many pairs, and what was said of them."""
    groups: dict[tuple[str, float], list[Line]] = {}
    for line in lines:
        if line["what"] == "comparison":
            groups.setdefault((line["gate"], line["slow_down"]), []).append(line)
    headings = ["compared by", "slower by", "pairs", "alarms", "found", "faster", "cannot tell", "no change", "finds"]
    return Table(headings, [_row(*kind, groups[kind]) for kind in sorted(groups)])


def _row(gate: str, slow_down: float, pairs: list[Line]) -> list[str]:
    said = Counter(line["exit"] for line in pairs)
    faster = sum(any(change["verdict"] == "faster" for change in line["changes"]) for line in pairs)
    finds = [change["could_find"] for line in pairs for change in line["changes"] if change["could_find"] is not None]
    middle = f"{statistics.median(finds):.0%}" if finds else "–"
    found = str(sum(_found(line) for line in pairs)) if slow_down else "–"
    counts = [str(count) for count in (faster, said[UNDECIDED], said[0])]
    return [gate, f"{slow_down:.0%}" if slow_down else "–", str(len(pairs)), str(said[ALARM]), found, *counts, middle]


def _found(line: Line) -> bool:
    """Whether the slowed lane is called slower, and no other one."""
    return [change["lane"] for change in line["changes"] if change["verdict"] == "slower"] == ["new"]


if __name__ == "__main__":
    sys.exit(main())
