#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore times of a process with N GiB of random memory, by bare CRIU: stock against the switches of the patched build.

Each memory size is checkpointed once, by stock CRIU; then the variants restore it in turn, so that what changes on the
machine meanwhile hits them all alike. One JSON object per restore goes to --output, a table of medians to stdout.
Needs root and gcc (or --heap, the compiled programs/heap.c). Images belong on tmpfs, and on a disk for --cache dropped.
"""

import argparse
import ctypes
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from criu_harness import Build, HarnessError, Outcome, Target, become_subreaper

SWITCHES = {
    "stock": {},
    "off": {},
    "mapped": {"CRIU_MAPPED_RESTORE": "1"},
    "threads": {"CRIU_RESTORE_THREADS": "{threads}"},
    "mapped-threads": {"CRIU_MAPPED_RESTORE": "1", "CRIU_RESTORE_THREADS": "{threads}"},
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", type=Path, required=True, help="folder of the stock build")
    parser.add_argument("--patched", type=Path, required=True, help="folder of the patched build")
    parser.add_argument("--images", type=Path, required=True, help="an existing folder for the images")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, appended")
    parser.add_argument("--heap", type=Path, help="the compiled workload; default: compile it")
    parser.add_argument("--gib", type=float, nargs="+", default=[1, 3])
    parser.add_argument("--kind", nargs="+", choices=["private", "shared"], default=["private"])
    parser.add_argument("--cache", nargs="+", choices=["warm", "dropped"], default=["warm"])
    parser.add_argument("--variants", nargs="+", choices=list(SWITCHES), default=["stock", "mapped", "threads"])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CRIU_RESTORE_THREADS; default: all CPUs")
    parser.add_argument("-n", type=int, default=10, help="restores of each variant; one more warms up and is marked so")
    return parser.parse_args()


def compile_heap(folder: Path) -> Path:
    source = Path(__file__).resolve().parent / "programs/heap.c"
    subprocess.run(["gcc", "-O2", "-o", folder / "heap", source], check=True)
    return folder / "heap"


class PageCache:
    """The page cache of image files: emptied, and looked at, so that `dropped` is proven and not hoped for."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self.libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]

    def drop(self, files: list[Path]) -> None:
        for file in files:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def resident_bytes(self, files: list[Path]) -> int:
        return sum(map(self._resident, files))

    def _resident(self, file: Path) -> int:
        size = file.stat().st_size
        if not size:
            return 0
        pages = ctypes.create_string_buffer((size + 4095) // 4096)
        with file.open("rb") as stream:
            address = self.libc.mmap(None, size, 1, 1, stream.fileno(), 0)
        if address == ctypes.c_void_p(-1).value or self.libc.mincore(address, size, pages):
            raise HarnessError(f"can't tell what of {file} is cached: {os.strerror(ctypes.get_errno())}")
        self.libc.munmap(address, size)
        return sum(byte & 1 for byte in pages.raw) * 4096


class Bench:
    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        self.heap = options.heap or compile_heap(scratch)
        self.report = scratch / "report"
        self.builds = {"stock": Build(options.stock), "patched": Build(options.patched)}
        self.cache = PageCache()
        self.samples: list[dict] = []

    def run(self) -> None:
        for kind, gib in itertools.product(self.options.kind, self.options.gib):
            images = self.options.images / f"bench-{kind}-{gib}"
            target = Target([str(self.heap), kind, str(int(gib * 1024)), str(self.report)], [self.report])
            self.report.unlink(missing_ok=True)
            try:
                expected = target.start(600).ask(600)
                self.builds["stock"].dump(target, images)
                self.compare(target, images, expected, kind=kind, gib=gib)
            finally:
                target.stop()
                shutil.rmtree(images, ignore_errors=True)

    def compare(self, target: Target, images: Path, expected: list[list[str]], **what) -> None:
        for iteration in range(self.options.n + 1):
            for cache, variant in itertools.product(self.options.cache, self.options.variants):
                resident = self.prepare_cache(cache, images)
                outcome, answer_s, correct = self.restore(variant, target, images, expected)
                self.record(
                    **what,
                    cache=cache,
                    variant=variant,
                    iteration=iteration,
                    warmup=iteration == 0,
                    restore_s=round(outcome.seconds, 6),
                    all_memory_read_s=round(answer_s, 6),
                    correct=correct,
                    cached_bytes_before=resident,
                    threads=self.options.threads,
                    **{name: value for name, value in outcome.summary(target.pid).items() if name != "threads"},
                )

    def prepare_cache(self, cache: str, images: Path) -> int:
        files = sorted(images.glob("pages-*.img"))
        if cache == "dropped":
            self.cache.drop(files)
        else:
            for file in files:
                with file.open("rb") as stream:
                    while stream.read(1 << 24):
                        pass
        resident = self.cache.resident_bytes(files)
        total = sum(file.stat().st_size for file in files)
        if cache == "dropped" and resident > total // 100:
            raise HarnessError(f"{resident} bytes of {images} stay cached: is it a tmpfs? --cache dropped needs a disk")
        return resident

    def restore(self, variant: str, target: Target, images: Path, expected) -> tuple[Outcome, float, bool]:
        """One restore; also the seconds from its start until the process has read all of its memory."""
        build = self.builds["stock" if variant == "stock" else "patched"]
        environment = {name: value.format(threads=self.options.threads) for name, value in SWITCHES[variant].items()}
        start = time.monotonic()
        outcome = build.restored(images, environment=environment)
        correct = target.ask(600) == expected
        answer_s = time.monotonic() - start
        target.stop()
        return outcome, answer_s, correct

    def record(self, **sample) -> None:
        self.samples.append(sample)
        with self.options.output.open("a") as stream:
            json.dump({"host": platform.node(), "kernel": platform.release(), "cpus": os.cpu_count(), **sample}, stream)
            stream.write("\n")
        if not sample["correct"]:
            raise HarnessError(f"the memory is not what it was: {sample}")

    def table(self) -> str:
        lines = [f"{'memory':<18}{'cache':<9}{'variant':<16}{'n':>3}{'restore s':>12}{'x stock':>9}{'all read s':>12}"]
        groups: dict[tuple, list[dict]] = {}
        for sample in self.samples:
            if not sample["warmup"]:
                key = (f"{sample['gib']} GiB {sample['kind']}", sample["cache"], sample["variant"])
                groups.setdefault(key, []).append(sample)
        medians = {key: statistics.median(s["restore_s"] for s in samples) for key, samples in groups.items()}
        for key, samples in groups.items():
            stock = medians.get((*key[:2], "stock"))
            ratio = f"{stock / medians[key]:.1f}" if stock else "-"
            read = statistics.median(s["all_memory_read_s"] for s in samples)
            memory, cache, variant = key
            lines.append(
                f"{memory:<18}{cache:<9}{variant:<16}{len(samples):>3}{medians[key]:>12.3f}{ratio:>9}{read:>12.3f}"
            )
        return "\n".join(lines)


def main() -> int:
    options = parse_arguments()
    become_subreaper()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        try:
            bench.run()
        except HarnessError as error:
            print(f"bench_restore: {error}", file=sys.stderr)
            return 1
        print(bench.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
