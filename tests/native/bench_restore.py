#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore times of a process with N GiB of random memory, by bare CRIU: stock against the switches of the patched build.

Each memory size is checkpointed once, by stock CRIU. Then the variants restore it in turn, in another order each round. So
what changes on the machine meanwhile hits them all alike. One JSON object per restore goes to --output, a table of
medians to stdout. Needs root, only the standard library, and gcc where no compiled programs/heap.c lies next to it (the kit
of cuda/Makefile has one). No CUDA plugin is loaded, so a GPU in the machine takes no part.
"""

import argparse
import ctypes
import itertools
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from criu_harness import Build, HarnessError, Outcome, Target, become_subreaper, largest_mapping

SWITCHES = {
    "stock": {},
    "off": {},
    "mapped": {"CRIU_MAPPED_RESTORE": "1"},
    "threads": {"CRIU_RESTORE_THREADS": "{threads}"},
    "huge-threads": {"CRIU_DRIVER_HUGE_PAGES": "1", "CRIU_RESTORE_THREADS": "{threads}"},
    "mapped-populate": {
        "CRIU_MAPPED_RESTORE": "1",
        "CRIU_MAPPED_SCOPE": "driver",
        "CRIU_DRIVER_POPULATE": "1",
        "CRIU_RESTORE_THREADS": "{threads}",
    },
    "mapped-threads": {"CRIU_MAPPED_RESTORE": "1", "CRIU_RESTORE_THREADS": "{threads}"},
}
HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", type=Path, required=True, help="folder of the stock build")
    parser.add_argument("--patched", type=Path, required=True, help="folder of the patched build")
    parser.add_argument("--images", type=Path, required=True, help="an existing folder for the images")
    parser.add_argument("--tmpfs", metavar="SIZE", help="mount a tmpfs of this size there meanwhile")
    parser.add_argument("--disk", type=Path, help="a folder on a disk for a copy of the images, for --cache dropped")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, appended")
    parser.add_argument(
        "--heap", type=Path, help="the compiled workload; default: `heap` next to this file, or compile it"
    )
    parser.add_argument("--gib", type=float, nargs="+", default=[1, 3])
    parser.add_argument("--kind", nargs="+", choices=["private", "shared", "scattered"], default=["private"])
    parser.add_argument("--cache", nargs="+", choices=["warm", "dropped"], default=["warm"])
    parser.add_argument("--variants", nargs="+", choices=list(SWITCHES), default=["stock", "mapped", "threads"])
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[os.cpu_count()], help="each makes variants of its own"
    )
    parser.add_argument("-n", type=int, default=10, help="restores of each variant; one more warms up and is marked so")
    parser.add_argument("--seed", type=int, default=1, help="decides the order in each round")
    parser.add_argument("--limit-s", type=float, help="start no further restore after this time, and show the table")
    parser.add_argument("--op-limit-s", type=float, default=60, help="no restore and no answer may take longer")
    options = parser.parse_args()
    for home in (options.stock, options.patched):
        if not (home / "libexec/criu").is_file():
            parser.error(f"{home} holds no build (libexec/criu); make one with native/build.sh or the kit")
    if os.geteuid() != 0:
        parser.error("run as root: CRIU needs it")
    return options


def expand(names: list[str], threads: list[int]) -> dict[str, dict[str, str]]:
    """Switches by the name of a variant; those with threads come once for each number of them."""
    variants = {}
    for name in names:
        if any("{threads}" in value for value in SWITCHES[name].values()):
            for n in threads:
                switches = {switch: value.format(threads=n) for switch, value in SWITCHES[name].items()}
                variants[f"{name}-{n}"] = switches
        else:
            variants[name] = SWITCHES[name]
    return variants


def find_heap(folder: Path) -> Path:
    if (HERE / "heap").is_file():
        return HERE / "heap"
    subprocess.run(["gcc", "-O2", "-o", folder / "heap", HERE / "programs/heap.c"], check=True)
    return folder / "heap"


@contextmanager
def tmpfs(folder: Path, size: str | None) -> Iterator[None]:
    """A tmpfs on the folder, if a size is given."""
    if size is None:
        yield
        return
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "bench-restore", folder]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HarnessError(f"can't mount a tmpfs on {folder}: {done.stderr.strip()}; leave --tmpfs out")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


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
        self.heap = options.heap or find_heap(scratch)
        self.report = scratch / "report"
        self.plugins = scratch / "plugins"
        self.plugins.mkdir()
        self.builds = {
            name: Build(home.resolve(), limit_s=options.op_limit_s)
            for name, home in {"stock": options.stock, "patched": options.patched}.items()
        }
        self.variants = expand(options.variants, options.threads)
        self.cache = PageCache()
        self.samples: list[dict] = []
        self.driver_range = ""
        self.deadline = time.monotonic() + options.limit_s if options.limit_s else None

    @property
    def environment(self) -> dict[str, str]:
        """An empty folder of plugins: CUDA's would take a ranges file for the state of a GPU."""
        return {"CRIU_LIBS_DIR": str(self.plugins)}

    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def run(self) -> None:
        limit_s = self.options.op_limit_s
        for kind, gib in itertools.product(self.options.kind, self.options.gib):
            if self.out_of_time():
                return
            folders = [
                folder / f"bench-{kind}-{gib:g}" for folder in (self.options.images, self.options.disk) if folder
            ]
            target = Target([str(self.heap), kind, str(int(gib * 1024)), str(self.report)], [self.report])
            self.report.unlink(missing_ok=True)
            try:
                expected = target.start(limit_s).ask(limit_s)
                start, end = largest_mapping(target.pid)
                self.builds["stock"].dump(target, folders[0], environment=self.environment)
                self.driver_range = f"{start:x}-{end:x}\n"
                for copy in folders[1:]:
                    shutil.copytree(folders[0], copy)
                self.compare(target, folders, expected, kind=kind, gib=gib)
            finally:
                target.stop()
                for folder in folders:
                    shutil.rmtree(folder, ignore_errors=True)

    def compare(self, target: Target, folders: list[Path], expected: list[list[str]], **what) -> None:
        shuffled = random.Random(self.options.seed)
        for iteration in range(self.options.n + 1):
            order = list(itertools.product(self.options.cache, self.variants))
            shuffled.shuffle(order)
            for cache, variant in order:
                if self.out_of_time():
                    print(f"the time limit is reached in round {iteration} of {what}: the rest is left out", flush=True)
                    return
                images = folders[-1] if cache == "dropped" else folders[0]
                resident = self.prepare_cache(cache, images)
                outcome, answer_s, correct = self.restore(variant, target, images, expected)
                summary = outcome.summary(target.pid)
                self.record(
                    **what,
                    cache=cache,
                    variant=variant,
                    switches=self.variants[variant],
                    iteration=iteration,
                    warmup=iteration == 0,
                    restore_s=round(outcome.seconds, 6),
                    asked_huge_bytes=outcome.asked_huge_bytes(target.pid),
                    read_s=outcome.span_seconds("read", target.pid),
                    all_memory_read_s=round(answer_s, 6),
                    correct=correct,
                    cached_bytes_before=resident,
                    **{f"used_{name}" if name == "threads" else name: value for name, value in summary.items()},
                )

    def prepare_cache(self, cache: str, images: Path) -> int:
        files = sorted(images.glob("pages-*.img"))
        total = sum(file.stat().st_size for file in files)
        if cache == "dropped":
            self.cache.drop(files)
        elif self.cache.resident_bytes(files) < total:
            for file in files:
                with file.open("rb") as stream:
                    while stream.read(1 << 24):
                        pass
        resident = self.cache.resident_bytes(files)
        if cache == "dropped" and resident > total // 100:
            raise HarnessError(f"{resident} bytes of {images} stay cached: is it a tmpfs? --cache dropped needs a disk")
        return resident

    def restore(self, variant: str, target: Target, images: Path, expected) -> tuple[Outcome, float, bool]:
        """One restore; also the seconds from its start until the process has read all of its memory."""
        build = self.builds["stock" if variant == "stock" else "patched"]
        # The heap counts as what the driver parked for the switches that are about such memory, and for them alone.
        ranges = images / f"cuda-ranges-{target.pid}.txt"
        ranges.unlink(missing_ok=True)
        if any(name.startswith("CRIU_DRIVER_") for name in self.variants[variant]):
            ranges.write_text(self.driver_range)
        start = time.monotonic()
        outcome = build.restored(images, environment={**self.environment, **self.variants[variant]})
        correct = target.ask(self.options.op_limit_s) == expected
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
        lines = [f"{'memory':<20}{'cache':<9}{'variant':<18}{'n':>3}{'restore s':>12}{'x stock':>9}{'all read s':>12}"]
        groups: dict[tuple, list[dict]] = {}
        for sample in self.samples:
            if not sample["warmup"]:
                key = (f"{sample['gib']} GiB {sample['kind']}", sample["cache"], sample["variant"])
                groups.setdefault(key, []).append(sample)
        medians = {key: statistics.median(s["restore_s"] for s in samples) for key, samples in groups.items()}
        for key, samples in sorted(groups.items()):
            stock = medians.get((*key[:2], "stock"))
            ratio = f"{stock / medians[key]:.1f}" if stock else "-"
            read = statistics.median(s["all_memory_read_s"] for s in samples)
            memory, cache, variant = key
            lines.append(
                f"{memory:<20}{cache:<9}{variant:<18}{len(samples):>3}{medians[key]:>12.3f}{ratio:>9}{read:>12.3f}"
            )
        return "\n".join(lines)


def run_bench(bench_type: type, options: argparse.Namespace) -> int:
    """Runs a bench with the tmpfs that its options ask for and prints its table; returns the exit status."""
    become_subreaper()
    returncode = 0
    with tempfile.TemporaryDirectory() as scratch:
        bench = bench_type(options, Path(scratch))
        try:
            with tmpfs(options.images, options.tmpfs):
                bench.run()
        except HarnessError as error:
            print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
            returncode = 1
        print(bench.table())
    return returncode


if __name__ == "__main__":
    sys.exit(run_bench(Bench, parse_arguments()))
