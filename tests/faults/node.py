# SPDX-License-Identifier: GPL-3.0-or-later
"""What a trial sees of its node: processes, ports, locks, mounts, rules of the firewall. Everything on the node is the campaign's own."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

STORE = Path("/mnt/checkpoint-ram")
RUN = Path("/run/gpuckpt")
HELPERS = ("criu", "podman", "conmon", "runc", "crun")
SETTLE_S = 10.0


def processes(match: Callable[[str, str], bool]) -> dict[int, str]:
    """Live processes whose name and command line match: number and command line. Zombies count: somebody must collect them."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            name = (entry / "comm").read_text().strip()
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:
            continue
        if match(name, line):
            found[int(entry.name)] = line or name
    return found


def named(name: str) -> dict[int, str]:
    """Processes of that name."""
    return processes(lambda comm, _: comm == name)


def servers(port: int) -> dict[int, str]:
    """Processes of the server at that port."""
    return processes(
        lambda _, line: f"--port={port}" in line and "gpuckpt_reference_server" in line and "podman" not in line
    )


def strike(pids: Iterable[int], signal_number: int = signal.SIGKILL) -> list[int]:
    """Sends a signal to each that is still there; returns those that it reached."""
    reached = []
    for pid in pids:
        try:
            os.kill(pid, signal_number)
            reached.append(pid)
        except ProcessLookupError:
            pass
    return reached


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def locked() -> list[str]:
    """Locks of ours that somebody holds."""
    held = []
    for path in RUN.glob("*lock*"):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(str(path))
    return held


def mounts() -> list[str]:
    """Mounts that checkpoints make."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.endswith("/checkpoint") or (point.startswith(f"{STORE}/"))]


def frozen() -> list[str]:
    """Frozen cgroups of containers (v1: the freezer's, v2: cgroup.freeze)."""
    states = [
        *Path("/sys/fs/cgroup").glob("freezer/**/freezer.state"),
        *Path("/sys/fs/cgroup").glob("**/libpod*/cgroup.freeze"),
    ]
    return [str(path) for path in states if read(path) in {"FROZEN", "FREEZING", "1"}]


def rules() -> list[str]:
    """Rules of the firewall that a network lock left."""
    said = subprocess.run(["iptables-save"], capture_output=True, text=True, check=False).stdout.splitlines()
    return [line for line in said if "0xc114" in line or "CRIU" in line]


def read(path: Path) -> str:
    """Content of a small file; empty if it is gone."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def settled(look: Callable[[], Iterable[str]], limit_s: float = SETTLE_S) -> list[str]:
    """What is still to be seen after a while: processes that are ending have the time to."""
    deadline = time.monotonic() + limit_s
    while (seen := list(look())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return seen


def traces(baseline: frozenset[str]) -> list[str]:
    """What a trial must not leave, but for what was there before it."""
    left = [f"{name} {pid}" for name in HELPERS for pid in named(name)]
    left += [f"lock {path} is held" for path in locked()]
    left += [f"mount {point}" for point in mounts()]
    left += [f"frozen {path}" for path in frozen()]
    left += [f"rule {line}" for line in rules()]
    left += [f"store {entry.name}" for entry in STORE.iterdir()]
    left += [f"shared memory {name}" for name in os.listdir("/dev/shm") if name.startswith("link_remap")]
    left += ["lane settings in force"] if (RUN / "criu.env").exists() else []
    return [trace for trace in left if trace not in baseline]
