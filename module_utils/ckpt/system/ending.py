# SPDX-License-Identifier: GPL-3.0-or-later
"""Ending processes for certain: all that belong to a server or a command, whatever podman or CRIU believe of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from . import procfs
from .files import read_text

LIMIT_S = 15.0
POLL_S = 0.005
CGROUPS = "/sys/fs/cgroup"
# what a cgroup's freezer is told (version 1, version 2) to let its processes run, and so also end
THAW = {"freezer.state": "THAWED", "cgroup.freeze": "0"}
MONITORS = ("conmon", "runc", "crun")


@dataclass(frozen=True)
class Process:
    """A process: its number, its parent's and its session's, its start in clock ticks since the boot, its name."""

    pid: int
    ppid: int
    session: int
    starttime: int
    comm: str
    ended: bool


Belongs = Callable[[Process], bool]


def read_process(pid: int) -> Process | None:
    """The process `pid`, None if there is none."""
    stat = read_text(f"/proc/{pid}/stat")
    if not stat:
        return None
    comm = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()
    # a first thread that ended leaves its process in the state of a zombie, while others may hang in a driver
    ended = fields[0] in ("Z", "X") and int(fields[17]) <= 1
    return Process(pid, int(fields[1]), int(fields[3]), int(fields[19]), comm, ended)


def processes() -> list[Process]:
    """All processes of this node, also those that ended and were not collected."""
    seen = (read_process(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return [process for process in seen if process is not None]


def clock_ticks() -> int:
    """Now, as a process that starts now has it for its start."""
    return in_ticks(time.clock_gettime(time.CLOCK_BOOTTIME))


def in_ticks(seconds: float) -> int:
    """A time in the clock ticks of `Process.starttime`."""
    return int(seconds * os.sysconf("SC_CLK_TCK"))


def living(belongs: Belongs) -> list[Process]:
    """The processes that belong and run, with their descendants and all of the sessions that they lead."""
    return [process for process in _family(belongs, set()) if not process.ended]


def end_all(belongs: Belongs, limit_s: float = LIMIT_S, before_each: Callable[[], None] = lambda: None) -> list[int]:
    """Kills what belongs, with all descendants and sessions, again and again until nothing of it runs.

    :param before_each: what makes the processes killable, called before each pass.
    :returns: numbers of processes that still run at the limit; they hang in the kernel or in a driver.
    """
    return end_found(belongs, limit_s, before_each)[1]


def end_found(
    belongs: Belongs, limit_s: float = LIMIT_S, before_each: Callable[[], None] = lambda: None
) -> tuple[bool, list[int]]:
    """As end_all; returns whether there was anything, too, since each look at all processes takes milliseconds."""
    found = False
    deadline = time.monotonic() + limit_s
    # a child of one that was just killed is known by its session alone
    sessions: set[int] = set()
    while True:
        before_each()
        members = _family(belongs, sessions)
        sessions.update(process.pid for process in members)
        for process in members:
            procfs.reap(process.pid)
        left = [process for process in members if not process.ended]
        found = found or bool(left)
        if not left or time.monotonic() >= deadline:
            return found, [process.pid for process in left]
        for process in left:
            _kill(process)
        time.sleep(POLL_S)


def wait_ended(belongs: Belongs, limit_s: float) -> bool:
    """Waits until nothing that belongs runs. False if something still does at the limit."""
    deadline = time.monotonic() + limit_s
    while living(belongs):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def wait_port_free(port: int, limit_s: float = LIMIT_S) -> str | None:
    """Waits until nobody listens on a TCP port. Returns who still does at the limit, None if it is free."""
    deadline = time.monotonic() + limit_s
    while (holder := procfs.port_holder(port)) is not None:
        if time.monotonic() >= deadline:
            return holder
        time.sleep(POLL_S)
    return None


def of_session(leader: int) -> Belongs:
    """What belongs to a command that was started in a session of its own."""
    return lambda process: leader in (process.pid, process.session)


class Container:
    """What there is of a container apart from podman's record of it: its processes, its monitor and its cgroups."""

    def __init__(self, identity: str) -> None:
        self.identity = identity

    def holds(self, process: Process) -> bool:
        """Whether a process is in the container's cgroup, or is the monitor or OCI runtime that was started for it."""
        if self.identity in read_text(f"/proc/{process.pid}/cgroup"):
            return True
        return process.comm.startswith(MONITORS) and self.identity in read_text(f"/proc/{process.pid}/cmdline").split(
            "\0"
        )

    def cgroups(self) -> list[str]:
        """Folders of the container's cgroups in every hierarchy, innermost first."""
        folders = (folder for folder, _, _ in os.walk(CGROUPS, topdown=False))
        return [folder for folder in folders if self.identity in folder]

    def thaw(self) -> None:
        """Lets frozen processes run. A CRIU that was killed leaves them frozen, and then not even SIGKILL ends them."""
        for folder in self.cgroups():
            for name, text in THAW.items():
                with suppress(OSError), open(f"{folder}/{name}", "r+", encoding="ascii") as control:
                    control.write(text)

    def end(self) -> list[int]:
        """Ends all processes. Returns the numbers of those that cannot be ended."""
        return end_all(self.holds, before_each=self.thaw)

    def remove_cgroups(self, limit_s: float = LIMIT_S) -> None:
        """Removes the cgroups of a container that ended; the kernel keeps them for a moment after the last process."""
        deadline = time.monotonic() + limit_s
        while (folders := self.cgroups()) and time.monotonic() < deadline:
            for folder in folders:
                with suppress(OSError):
                    os.rmdir(folder)
            time.sleep(POLL_S)


def _family(belongs: Belongs, sessions: set[int]) -> list[Process]:
    """The processes that belong or are of one of the sessions, then their descendants and what they lead."""
    everything = processes()
    spared = _ancestors()
    others = {process.pid: process for process in everything if process.pid not in spared}
    family = [process for process in others.values() if belongs(process) or process.session in sessions]
    for process in family:
        others.pop(process.pid)
    for member in family:
        kin = [process for process in others.values() if member.pid in (process.ppid, process.session)]
        family += kin
        for process in kin:
            others.pop(process.pid)
    return family


def _ancestors() -> set[int]:
    """This process and those it descends from: never to be ended from here."""
    found = {os.getpid()}
    process = read_process(os.getpid())
    while process is not None and process.ppid not in found:
        found.add(process.ppid)
        process = read_process(process.ppid)
    return found


def _kill(process: Process) -> None:
    """Kills this very process, not another one that has its number meanwhile."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        same = read_process(process.pid)
        if same is not None and same.starttime == process.starttime:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)
