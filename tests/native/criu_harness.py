# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoint and restore real processes with one build of CRIU; shared by the tests and the restore bench."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
ROOT = Path(__file__).resolve().parent.parent.parent  # means nothing in a bench's kit, which may lie anywhere
TARBALL_VARIABLE = "GPUCKPT_CRIU_TARBALL"
PR_SET_CHILD_SUBREAPER = 36
SUMMARY = re.compile(
    r"gpuckpt: memory pid=(\d+) mapped_bytes=(\d+) read_bytes=(\d+) maps=(\d+) threads=(\d+)", re.MULTILINE
)
HUGE_PAGES = re.compile(r"gpuckpt: huge pages pid=(\d+) bytes=(\d+)$", re.MULTILINE)
SPAN = re.compile(
    r"gpuckpt: span name=(\S+) pid=(\d+) start=(\d+\.\d{6}) end=(\d+\.\d{6}) bytes=(\d+) note=(\S+)$", re.M
)


class HarnessError(Exception):
    """Something around the test failed: a build, a start, an answer that does not come."""


def become_subreaper() -> None:
    """Makes restored trees children of this process, so that it can wait for their end instead of guessing it."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def wait_until(condition, what: str, timeout_s: float = 60.0) -> None:
    """Polls until condition() holds. Raises HarnessError after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise HarnessError(f"waited {timeout_s} s in vain: {what}")
        time.sleep(0.002)


def ends_within(process: subprocess.Popen, limit_s: float) -> bool:
    """Waits for the end of a process, to the microsecond: subprocess looks only every 50 ms when it is given a limit."""
    poller = select.poll()
    descriptor = os.pidfd_open(process.pid)
    try:
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(limit_s * 1000))
    finally:
        os.close(descriptor)


def kill(pid: int) -> None:
    """Kills a process that may have gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def reap(pid: int) -> None:
    """Waits until the id of a killed process is free. Raises HarnessError when it does not end."""

    def gone() -> bool:
        try:
            return os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:
            return not Path(f"/proc/{pid}").exists()

    wait_until(gone, f"the end of pid {pid}")


def descendants(pid: int) -> list[int]:
    """The pids of a tree, its root first."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += descendants(int(child))
    return found


def largest_mapping(pid: int) -> tuple[int, int]:
    """Start and end of the largest mapping of a process."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    ranges = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in lines if "[vsyscall]" not in line]
    return max(ranges, key=lambda r: r[1] - r[0])


def image_ranges(pid: int) -> list[tuple[int, int]]:
    """Start and end of every mapping of a page image."""
    lines = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/pages-" in line]
    return [(int(start, 16), int(end, 16)) for start, end in (line.split()[0].split("-") for line in lines)]


def own_bytes(images: Path) -> int:
    """What the checkpoint takes apart from the bases that it shares with older ones."""
    return sum(path.stat().st_size for path in images.iterdir() if not path.name.startswith("mapped-base-"))


def find_tarball() -> Path:
    """CRIU's release tarball: named by the environment, or the one that was fetched. Raises HarnessError."""
    named = os.environ.get(TARBALL_VARIABLE)
    tarball = Path(named) if named else next(iter(sorted((ROOT / ".cache/sources").glob("criu_*.tar.xz"))), None)
    if tarball is None or not tarball.is_file():
        raise HarnessError(f"no CRIU tarball at {tarball}: run `make sources`, or name one in {TARBALL_VARIABLE}")
    return tarball


@dataclass(frozen=True)
class Outcome:
    """One run of criu; duration in seconds."""

    returncode: int
    log: str
    seconds: float

    def summary(self, pid: int) -> dict[str, int]:
        """The memory summary of one restored process; empty where the plan did not act."""
        for match in SUMMARY.finditer(self.log):
            of, mapped, read, maps, threads = map(int, match.groups())
            if of == pid:
                return {"mapped_bytes": mapped, "read_bytes": read, "maps": maps, "threads": threads}
        return {}

    @property
    def mapped_bytes(self) -> int:
        return sum(int(match.group(2)) for match in SUMMARY.finditer(self.log))

    def asked_huge_bytes(self, pid: int) -> int:
        """The bytes that the restore of one process asked huge pages for."""
        return sum(int(size) for of, size in HUGE_PAGES.findall(self.log) if int(of) == pid)

    def span_seconds(self, name: str, pid: int) -> float | None:
        """How long the span of that name took for one process, or None where there is none."""
        for match in SPAN.finditer(self.log):
            if (match.group(1), int(match.group(2))) == (name, pid):
                return round(float(match.group(4)) - float(match.group(3)), 6)
        return None

    def notes(self, name: str) -> set[str]:
        """The notes of all spans of that name."""
        return {match.group(6) for match in SPAN.finditer(self.log) if match.group(1) == name}


@dataclass(frozen=True)
class Build:
    """One build of CRIU: the folder that native/build.sh made, its source tree where it was kept, and what starts it."""

    home: Path
    tree: Path | None = None
    launcher: tuple[str, ...] = ()
    limit_s: float = 600.0

    @property
    def binary(self) -> Path:
        return self.home / "libexec/criu"

    def run(self, command: str, images: Path, *arguments: str, environment: dict[str, str] | None = None) -> Outcome:
        """Runs criu. Raises HarnessError when it does not end within limit_s."""
        log = images / f"{command}.log"
        log.unlink(missing_ok=True)
        start = time.monotonic()
        process = subprocess.Popen(
            [*self.launcher, self.binary, command, "-D", images, "-o", log, "-v4", *arguments],
            env={**os.environ, "CRIU_LIBS_DIR": str(self.home / "lib/criu"), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ended = ends_within(process, self.limit_s)
        seconds = time.monotonic() - start
        if not ended:
            process.kill()
        returncode = process.wait()
        if not ended:
            raise HarnessError(f"criu {command} did not end within {self.limit_s:g} s")
        return Outcome(returncode, log.read_text(errors="replace") if log.exists() else "", seconds)

    def dump(self, target: Target, images: Path, *arguments: str, environment: dict[str, str] | None = None) -> Outcome:
        """Checkpoints the tree, which is then gone (unless --leave-running). Raises HarnessError on failure."""
        images.mkdir(parents=True, exist_ok=True)
        outcome = self.run("dump", images, "-t", str(target.pid), *arguments, environment=environment)
        if outcome.returncode:
            raise HarnessError(f"dump failed:\n{outcome.log[-3000:]}")
        if "--leave-running" not in arguments:
            target.stop()
        return outcome

    def restore(self, images: Path, *arguments: str, environment: dict[str, str] | None = None) -> Outcome:
        return self.run("restore", images, "-d", *arguments, environment=environment)

    def restored(self, images: Path, *arguments: str, environment: dict[str, str] | None = None) -> Outcome:
        """Restores. Raises HarnessError on failure."""
        outcome = self.restore(images, *arguments, environment=environment)
        if outcome.returncode:
            raise HarnessError(f"restore failed:\n{outcome.log[-3000:]}")
        return outcome


def build(variant: str, *, with_tree: bool) -> Build:
    """The build that GPUCKPT_CRIU_<VARIANT> names, else the one of these inputs: role criu's, or made here once."""
    named = os.environ.get(f"GPUCKPT_CRIU_{variant.upper()}")
    if named:
        return Build(Path(named), Path(f"{named}-tree"))
    script = ROOT / "native/build.sh"
    arguments = ["--variant", variant, "--tarball", str(find_tarball())]
    digest = subprocess.run([script, "digest", *arguments], check=True, capture_output=True, text=True).stdout.strip()
    home = ROOT / "build/native" / f"{variant}-{digest}"
    tree = home.with_name(home.name + "-tree")
    if not (home / "BUILD.json").exists() or (with_tree and not tree.exists()):
        subprocess.run(["rm", "-rf", home, tree], check=True)
        archive = ROOT / ".cache/builds" / f"criu-{variant}-{digest}.tar.gz"
        if archive.exists() and not with_tree:
            home.mkdir(parents=True)
            subprocess.run(["tar", "-xzf", archive, "-C", home, "--strip-components=1"], check=True)
        else:
            keep = ["--tree", str(tree)] if with_tree else []
            subprocess.run([script, "build", *arguments, "--out", home, *keep], check=True)
    return Build(home, tree if tree.exists() else None)


@dataclass
class Target:
    """A process tree that answers SIGUSR1 by replacing its report files ("<number> <digests>")."""

    argv: list[str]
    reports: list[Path]
    pids: list[int] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.pids[0]

    def start(self, timeout_s: float = 120.0) -> Target:
        process = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pids = [process.pid]
        wait_until(lambda: all(report.exists() for report in self.reports), f"{self.argv} to start", timeout_s)
        self.pids = descendants(process.pid)
        return self

    def ask(self, timeout_s: float = 120.0) -> list[list[str]]:
        """The digests that every process of the tree computes now. Raises HarnessError when one does not answer."""
        for report in self.reports:
            report.unlink(missing_ok=True)
        for pid in self.pids:
            os.kill(pid, signal.SIGUSR1)
        wait_until(lambda: all(report.exists() for report in self.reports), f"an answer of {self.pids}", timeout_s)
        return [report.read_text().split()[1:] for report in self.reports]

    def stop(self) -> None:
        """Ends the tree. A child becomes ours to reap only when its parent has gone: kill all first."""
        for pid in self.pids:
            kill(pid)
        for pid in self.pids:
            reap(pid)


def pss_kib(pid: int) -> int:
    """Proportional set size: pages that n processes share count 1/n each."""
    return int(re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])


class Copy:
    """One more restored copy of a process, in a pid namespace of its own, where its old pid is free."""

    def __init__(self, build: Build, images: Path, environment: dict[str, str], log: Path) -> None:
        ready = log.with_suffix(".ready")
        ready.unlink(missing_ok=True)
        # no program of its own marks the end: it would be among the descendants for a moment
        restore = f"{build.binary} restore -d -v4 -D {images} -o {log} && : >{ready} && exec sleep 1000"
        self.namespace = subprocess.Popen(
            ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "sh", "-c", restore],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until(lambda: ready.exists() or self.namespace.poll() is not None, "a copy to be restored")
        except HarnessError:
            self.stop()
            raise
        if not ready.exists():
            raise HarnessError(f"restore failed:\n{log.read_text()[-2000:]}")
        # unshare, the first process of the namespace, and what was restored into it
        self.pid = descendants(self.namespace.pid)[2]

    def stop(self) -> None:
        self.namespace.kill()
        self.namespace.wait()


def pss_of_copies(build: Build, images: Path, environment: dict[str, str], scratch: Path) -> list[int]:
    """MiB that 1, 2, 3 and 4 copies take together, after each has read all of its memory."""
    copies: list[Copy] = []
    totals = []
    try:
        for n in range(4):
            copies.append(Copy(build, images, environment, scratch / f"copy-{n}.log"))
            touch_all(copies[-1].pid)
            totals.append(sum(pss_kib(copy.pid) for copy in copies) >> 10)
    finally:
        for copy in copies:
            copy.stop()
    return totals


def touch_all(pid: int) -> None:
    """Reads every page, as the process itself would, so that the page tables count what it uses."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            if "rw-p" in line and end < 1 << 47:
                for at in range(start, end, MIB):
                    os.pread(memory.fileno(), min(MIB, end - at), at)
