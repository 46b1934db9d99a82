#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a checkpoint of a restored process takes, three generations deep, and what copies of one checkpoint share.

Each round starts a process with N GiB of random memory and checkpoints it. Three times over it restores it, lets it change some
pages, and checkpoints it again. It does so by stock CRIU, and mapped with either way of CRIU_MAPPED_REDUMP. Older images are
deleted before the next restore. Then 1 to 4 copies of one checkpoint are restored at the same time. Each reads all of its memory,
and their Pss is added up. Modes take turns, in another order each round; digests are compared after every restore. One JSON object per
sample goes to --output, tables of medians to stdout. Needs root, only the standard library and gcc.
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_restore import find_heap, run_bench
from criu_harness import (
    MIB,
    Build,
    HarnessError,
    Target,
    largest_mapping,
    own_bytes,
    pss_of_copies,
)

MAPPED = {"CRIU_MAPPED_RESTORE": "1", "CRIU_MAPPED_SCOPE": "all"}
MODES = {
    "stock": {},
    "standalone": {**MAPPED, "CRIU_MAPPED_REDUMP": "standalone"},
    "delta": {**MAPPED, "CRIU_MAPPED_REDUMP": "delta"},
}
COPIES = {"stock": {}, "mapped": MAPPED}
GENERATIONS = 3
PAGE = 4096


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", type=Path, required=True, help="folder of the stock build")
    parser.add_argument("--patched", type=Path, required=True, help="folder of the patched build")
    parser.add_argument("--images", type=Path, required=True, help="an existing folder for the images")
    parser.add_argument("--tmpfs", metavar="SIZE", help="mount a tmpfs of this size there meanwhile")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, appended")
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("--changed-mib", type=int, default=16, help="memory changed per generation, page by page")
    parser.add_argument("-n", type=int, default=5, help="rounds; one more warms up and is marked so")
    parser.add_argument("--seed", type=int, default=1, help="decides the order in each round, and what is changed")
    return parser.parse_args()


def change_pages(pid: int, start: int, end: int, count: int, seed: int) -> None:
    """Writes to that many pages of a range, at random, as the process itself would."""
    places = random.Random(seed)
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for page in places.sample(range(start, end - PAGE, PAGE), count):
            os.pwrite(memory.fileno(), places.randbytes(16), page)


class Bench:
    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        self.scratch = scratch
        self.report = scratch / "report"
        self.heap = find_heap(scratch)
        plugins = scratch / "plugins"
        plugins.mkdir()
        # No plugins: a GPU in the machine takes no part.
        self.environment = {"CRIU_LIBS_DIR": str(plugins)}
        self.stock, self.patched = (Build(home.resolve()) for home in (options.stock, options.patched))
        self.samples: list[dict] = []

    def run(self) -> None:
        shuffled = random.Random(self.options.seed)
        for number in range(self.options.n + 1):
            plan = [(self.generations, mode) for mode in MODES] + [(self.copies, mode) for mode in COPIES]
            shuffled.shuffle(plan)
            for measure, mode in plan:
                measure(mode, number)
                print(f"round {number}: {measure.__name__} {mode} done", flush=True)

    def start(self) -> Target:
        self.report.unlink(missing_ok=True)
        mib = str(int(self.options.gib * 1024))
        return Target([str(self.heap), "private", mib, str(self.report)], [self.report]).start()

    def generations(self, mode: str, number: int) -> None:
        build = self.stock if mode == "stock" else self.patched
        environment = {**self.environment, **MODES[mode]}
        folders = [self.options.images / f"generation-{n}" for n in range(GENERATIONS + 1)]
        target = self.start()
        try:
            expected = target.ask()
            heap = largest_mapping(target.pid)
            self.stock.dump(target, folders[0], environment=self.environment)
            for generation in range(1, GENERATIONS + 1):
                self.restore(build, folders[generation - 1], environment, target, expected)
                pages = self.options.changed_mib * MIB // PAGE
                change_pages(target.pid, *heap, pages, seed=self.options.seed * 1000 + number * 10 + generation)
                expected = target.ask()
                dumped = build.dump(target, folders[generation], environment=environment)
                shutil.rmtree(folders[generation - 1])
                restored_s = self.restore(build, folders[generation], environment, target, expected)
                target.stop()
                self.record(
                    kind="generation",
                    mode=mode,
                    round=number,
                    generation=generation,
                    dump_s=round(dumped.seconds, 6),
                    own_bytes=own_bytes(folders[generation]),
                    restore_s=round(restored_s, 6),
                )
        finally:
            target.stop()
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    def restore(self, build: Build, images: Path, environment: dict[str, str], target: Target, expected) -> float:
        """Seconds of the restore. Raises HarnessError when the memory is not what it was."""
        seconds = build.restored(images, environment=environment).seconds
        if target.ask() != expected:
            raise HarnessError(f"the memory restored from {images} is not what it was")
        return seconds

    def copies(self, mode: str, number: int) -> None:
        images = self.options.images / "copies"
        target = self.start()
        try:
            self.stock.dump(target, images, environment=self.environment)
            build = self.stock if mode == "stock" else self.patched
            totals = pss_of_copies(build, images, {**self.environment, **COPIES[mode]}, self.scratch)
        finally:
            target.stop()
            shutil.rmtree(images, ignore_errors=True)
        self.record(kind="copies", mode=mode, round=number, pss_mib=totals)

    def record(self, **sample) -> None:
        sample["warmup"] = sample["round"] == 0
        self.samples.append(sample)
        common = {
            "host": platform.node(),
            "kernel": platform.release(),
            "cpus": os.cpu_count(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "gib": self.options.gib,
            "changed_mib": self.options.changed_mib,
        }
        with self.options.output.open("a") as stream:
            stream.write(json.dumps({**common, **sample}) + "\n")

    def table(self) -> str:
        """Medians as Markdown, the warm-up left out."""
        measured = [sample for sample in self.samples if not sample["warmup"]]
        lines = [
            "| generation | mode | n | dump s | own MiB | restore s |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
        ]
        for generation in range(1, GENERATIONS + 1):
            for mode in MODES:
                group = [s for s in measured if (s.get("generation"), s["mode"]) == (generation, mode)]
                if group:
                    dump, own, restore = (
                        statistics.median(s[key] for s in group) for key in ("dump_s", "own_bytes", "restore_s")
                    )
                    lines.append(
                        f"| {generation} | {mode} | {len(group)} | {dump:.3f} | {own / MIB:.1f} | {restore:.3f} |"
                    )
        lines += ["", "| Pss of copies, MiB | n | 1 | 2 | 4 |", "| --- | ---: | ---: | ---: | ---: |"]
        for mode in COPIES:
            group = [s["pss_mib"] for s in measured if s["kind"] == "copies" and s["mode"] == mode]
            if group:
                medians = [statistics.median(totals[count - 1] for totals in group) for count in (1, 2, 4)]
                lines.append(f"| {mode} | {len(group)} | " + " | ".join(f"{median:.0f}" for median in medians) + " |")
        return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_bench(Bench, parse_arguments()))
