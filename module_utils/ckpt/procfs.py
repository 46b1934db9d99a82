# SPDX-License-Identifier: GPL-3.0-or-later
"""What /proc says about processes: trees, identities, and what stands in the way of a checkpoint."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass

from ansible.module_utils.ckpt.files import read_text

TCP_ESTABLISHED = "01"
TCP_CLOSE_WAIT = "08"
# ::ffff:a.b.c.d in /proc/net/tcp6
MAPPED_IPV4 = "0000000000000000FFFF0000"
TCP_LISTEN = "0A"
OPEN_TCP_STATES = {TCP_ESTABLISHED, TCP_CLOSE_WAIT, "02", "03", "04", "05", "09", "0B"}
REAP_TIMEOUT_S = 10.0
REAP_POLL_S = 0.005
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Task:
    """One process. `nspid` is its number in its innermost PID namespace, which survives a restore."""

    pid: int
    nspid: int
    ppid: int
    comm: str
    state: str
    starttime: int

    @property
    def identity(self) -> tuple[int, str]:
        """What is the same before a checkpoint and after the restore."""
        return (self.nspid, self.comm)

    def as_dict(self) -> dict[str, int | str]:
        """For the manifest of a checkpoint."""
        return asdict(self)


def read_task(pid: int, proc: str = "/proc") -> Task | None:
    """The process `pid`, None if it does not exist."""
    stat = read_text(f"{proc}/{pid}/stat")
    if not stat:
        return None
    comm = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()
    nspid = pid
    for line in read_text(f"{proc}/{pid}/status").splitlines():
        if line.startswith("NSpid:"):
            nspid = int(line.split()[-1])
    return Task(pid, nspid, int(fields[1]), comm, fields[0], int(fields[19]))


def tree(root: int, proc: str = "/proc") -> list[Task]:
    """The process `root` and all its descendants, parents first; zombies are left out."""
    children: dict[int, list[Task]] = {}
    for entry in os.listdir(proc):
        task = read_task(int(entry), proc) if entry.isdigit() else None
        if task is not None and task.state not in ("Z", "X"):
            children.setdefault(task.ppid, []).append(task)
    first = read_task(root, proc)
    if first is None or first.state in ("Z", "X"):
        return []
    found = [first]
    for task in found:
        found.extend(children.get(task.pid, []))
    return found


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that `wait_gone` can reap them.

    A restored tree is CRIU's orphan; the PID 1 of a small machine may take more than a second to notice that it ended.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(pid: int) -> None:
    """Collect a process that ended, if it is a child of this one."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def wait_gone(pids: Iterable[int], timeout_s: float = REAP_TIMEOUT_S) -> list[int]:
    """Wait until no process, not even a zombie, has one of these numbers. Returns those that are still there."""
    remaining = list(pids)
    deadline = time.monotonic() + timeout_s
    while remaining:
        for pid in remaining:
            reap(pid)
        remaining = [pid for pid in remaining if os.path.exists(f"/proc/{pid}")]
        if not remaining or time.monotonic() >= deadline:
            break
        time.sleep(REAP_POLL_S)
    return remaining


def anonymous_bytes(pids: Iterable[int], proc: str = "/proc") -> int:
    """Memory that a dump of the processes has to write: private and shared anonymous pages that are resident."""
    kib = 0
    for pid in pids:
        kib += _kib(f"{proc}/{pid}/smaps_rollup", "Anonymous:") + _kib(f"{proc}/{pid}/status", "RssShmem:")
    return kib << 10


def io_uring_holders(pids: Iterable[int], proc: str = "/proc") -> list[int]:
    """Those of the processes that hold an io_uring descriptor, which CRIU cannot dump."""
    return [pid for pid in pids if any("io_uring" in target for target in _descriptors(pid, proc))]


def open_tcp_connections(pids: Iterable[int], proc: str = "/proc") -> list[str]:
    """TCP connections (not listeners) held by the processes, as `local -> remote` in the kernel's order."""
    found = []
    for pid in pids:
        inodes = {target[8:-1] for target in _descriptors(pid, proc) if target.startswith("socket:[")}
        if not inodes:
            continue
        for row in _tcp_rows(f"{proc}/{pid}/net"):
            if row["inode"] in inodes and row["state"] in OPEN_TCP_STATES:
                found.append(f"{row['local']} -> {row['remote']}")
    return sorted(set(found))


def one_ended(connections: Iterable[str]) -> list[str]:
    """Those connections (as open_tcp_connections tells them) whose other end is not among them."""
    pairs = [tuple(row.split(" -> ")) for row in connections]
    return [f"{local} -> {remote}" for local, remote in pairs if (remote, local) not in pairs]


def port_holder(port: int, proc: str = "/proc") -> str | None:
    """Who listens on the TCP port: `comm (pid N)`, or `a process` if that cannot be read; None if it is free."""
    inodes = {
        row["inode"]
        for row in _tcp_rows(f"{proc}/net")
        if row["state"] == TCP_LISTEN and row["local"].endswith(f":{port}")
    }
    if not inodes:
        return None
    for entry in os.listdir(proc):
        if not entry.isdigit():
            continue
        if any(target[8:-1] in inodes for target in _descriptors(int(entry), proc) if target.startswith("socket:[")):
            return f"{read_text(f'{proc}/{entry}/comm').strip()} (pid {entry})"
    return "a process"


def _kib(path: str, key: str) -> int:
    return sum(int(line.split()[1]) for line in read_text(path).splitlines() if line.startswith(key))


def _descriptors(pid: int, proc: str) -> list[str]:
    folder = f"{proc}/{pid}/fd"
    targets = []
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    for name in names:
        try:
            targets.append(os.readlink(f"{folder}/{name}"))
        except OSError:
            continue
    return targets


def _tcp_rows(folder: str) -> list[dict[str, str]]:
    rows = []
    for name in ("tcp", "tcp6"):
        for line in read_text(f"{folder}/{name}").splitlines()[1:]:
            fields = line.split()
            rows.append(
                {
                    "local": _address(fields[1]),
                    "remote": _address(fields[2]),
                    "state": fields[3],
                    "inode": fields[9],
                }
            )
    return rows


def _address(text: str) -> str:
    """`0100007F:4650` as `127.0.0.1:18000`, through an IPv6 socket too; IPv6 addresses keep the kernel's form."""
    host, port = text.removeprefix(MAPPED_IPV4).split(":")
    if len(host) == 8:
        host = ".".join(str(byte) for byte in reversed(bytes.fromhex(host)))
    return f"{host}:{int(port, 16)}"
