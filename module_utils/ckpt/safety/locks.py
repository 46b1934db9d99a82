# SPDX-License-Identifier: GPL-3.0-or-later
"""One operation on a node at a time, and nothing in force after it: not even after a kill.

A module that works on a node is two processes. The worker does the work and holds the lock. Its guard, the process that
Ansible started, holds the lock, too, and waits. If the worker is killed, the guard ends every command that is still under
way, and takes back what was set for them. Only then does it let the lock go. If the guard is killed, the worker ends its work
in good order.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, NoReturn

from ..criu import network_lock, settings
from ..criu.choice import Criu
from ..errors import CkptError
from ..system import ending, mounts, procfs
from ..system.commands import Commands
from ..system.files import read_text, remove, write_atomically

# Only root looks into it: whoever can open a lock can hold it.
FOLDER = "/run/gpuckpt"
LOCK_FILE = f"{FOLDER}/lock"
LANE_ENV_FILE = settings.OVERRIDES_FILE
LOCK_TIMEOUT_S = 30.0
LOCK_POLL_S = 0.05
# how long a module that is told to end may take to put things back
END_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1
# where podman looks for a container's checkpoint; the modules bind a folder of the store there for it
CHECKPOINT_MOUNT = "/userdata/checkpoint"
# while a container is restored: its root, in the OCI runtime's folder for it, and its cgroups, in podman's
RESTORED_ROOT = "criu-root"
HALF_RESTORED = re.compile(rf"/([0-9a-f]{{64}})/(?:{RESTORED_ROOT}|userdata/\.criu\.cgyard\.[^/]+)$")
EXPENDABLE = "expendable"


@dataclass(frozen=True)
class Holder:
    """Who holds the lock. `starttime` is in clock ticks since the boot; `checkpoint` is the folder it works on."""

    pid: int
    starttime: int
    boot_id: str
    operation: str = "a module"
    run_id: str | None = None
    checkpoint: str | None = None

    def lives(self) -> bool:
        """Whether it still runs."""
        task = procfs.read_task(self.pid)
        return (
            self.boot_id == boot_id()
            and task is not None
            and task.state not in ("Z", "X")
            and task.starttime == self.starttime
        )

    def __str__(self) -> str:
        run = f" of the run {self.run_id}" if self.run_id else ""
        return f"{self.operation}{run} (process {self.pid})"


class EndedEarly(BaseException):
    """The module's time is over, or it was told to end. Nothing but the frame of the modules may stop this."""


def as_failure(operation: str, ended: EndedEarly) -> CkptError:
    """What a module tells that was ended early."""
    return CkptError(
        "timeout",
        f"the {operation} was ended: {ended}; what it had begun was put back. Find out what it waited for, or allow more time.",
    )


_to_guard: socket.socket | None = None
_patience_s = LOCK_TIMEOUT_S


def boot_id() -> str:
    """What tells this boot of the machine from any other."""
    return read_text("/proc/sys/kernel/random/boot_id").strip()


def this_process(operation: str = "a module", run_id: str | None = None, checkpoint: str | None = None) -> Holder:
    """This process as a holder."""
    task = procfs.read_task(os.getpid())
    return Holder(os.getpid(), task.starttime if task else 0, boot_id(), operation, run_id, checkpoint)


@contextmanager
def exclusive(
    operation: str = "a module",
    run_id: str | None = None,
    checkpoint: str | None = None,
    limit_s: float | None = None,
) -> Iterator[None]:
    """Only one operation on a node at a time; what a broken-off one left in force is taken back first.

    :param operation: what is done, for others that wait
    :param run_id: the benchmark that it belongs to
    :param checkpoint: the checkpoint's folder
    :param limit_s: seconds to wait for another operation; those of `be_patient` if it is left out
    :raises CkptError: timeout (another one does not end), bad_input (the lock's file or folder is somebody else's)
    """
    descriptor = _take(_patience_s if limit_s is None else limit_s)
    try:
        if _to_guard is not None:
            socket.send_fds(_to_guard, [b"lock"], [descriptor])
        heal(_read(descriptor))
        _write(descriptor, json.dumps(asdict(this_process(operation, run_id, checkpoint))))
        try:
            yield
        finally:
            _write(descriptor, "")
            # the guard has the lock open, too
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def be_patient(seconds: float) -> None:
    """From now on this process waits so long for others: one that serves has nothing better to do."""
    global _patience_s
    _patience_s = seconds


@contextmanager
def lane_settings(criu: Criu) -> Iterator[None]:
    """Lets the front use a lane's build and switches; container runtimes strip the environment of the caller.

    The front believes them only while this process lives. Needs the lock.
    """
    me = this_process()
    values = {settings.BUILD: criu.build, settings.ROOT: criu.home, **criu.switches}
    text = settings.render(values, holder=f"{me.pid} {me.starttime} {me.boot_id}")
    write_atomically(LANE_ENV_FILE, text, 0o600)
    try:
        yield
    finally:
        remove(LANE_ENV_FILE)


def holder() -> Holder | None:
    """Who holds the lock, or was killed while it did; None if nobody."""
    try:
        descriptor = os.open(LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return _read(descriptor)
    finally:
        os.close(descriptor)


def end_holder_of(run_id: str) -> bool:
    """Ends a module of this run that is still under way, and waits until the node is free. Returns whether there was one.

    It is asked to put things back, and killed if it does not; its guard puts them back then.
    """
    held = holder()
    if held is None or held.run_id != run_id or not held.lives():
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        if held.lives():
            os.kill(held.pid, number)
        until = time.monotonic() + END_TIMEOUT_S
        while held.lives() and time.monotonic() < until:
            time.sleep(LOCK_POLL_S)
    return True


def heal(former: Holder | None) -> None:
    """Takes back what an operation left in force that could not do so itself. Needs the lock.

    :param former: the operation that was broken off, None if it ended in good order
    """
    remove(LANE_ENV_FILE)
    if former is None:
        return
    for point in (point for point in mounts.points() if point.endswith(CHECKPOINT_MOUNT)):
        Commands().run(["umount", "--lazy", point], timeout_s=30)
    network_lock.remove_stale(Commands())
    if former.checkpoint:
        shutil.rmtree(os.path.join(former.checkpoint, EXPENDABLE), ignore_errors=True)


def supervise(work: Callable[[], None]) -> None:
    """Does the work in a process that is guarded. Returns in the worker only; the guard leaves with the worker's status."""
    global _to_guard
    # what the worker's commands leave behind becomes a child of the guard, which finds it and collects it
    procfs.adopt_orphans()
    here, there = socket.socketpair()
    guard = os.getpid()
    worker = os.fork()
    if worker:
        there.close()
        _stand_guard(worker, here)
    here.close()
    # a signal to the group of the guard is the guard's to pass on
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: _end_early("it was told to end"))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != guard:
        sys.exit(1)
    # its own, too: they would be lost to it if the guard were killed
    procfs.adopt_orphans()
    _to_guard = there
    work()


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Within: EndedEarly is raised after so many seconds, and the commands under way are ended. None: no limit."""

    def ring(number: int, frame: FrameType | None) -> None:
        _end_early(f"it was not done within {seconds:g} s (deadline_s)")

    if not seconds:
        yield
        return
    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def end_commands() -> None:
    """Kills what this module's commands run, whoever its parent was, and undoes what only half came back of a container.

    A container's monitor is a child of this process by now, and ends before what it watches: it would have podman clear away.
    """
    me = os.getpid()
    ending.end_all(lambda process: process.ppid == me, KILL_TIMEOUT_S)
    _forget_half_restored()


def _forget_half_restored() -> None:
    """Removes the mounts by which a container's root and cgroups are restored, and the folders that they lie on.

    Whoever removes such a folder before the mount is gone empties the container. What somebody else restores is left alone.
    """
    found = {point: match[1] for point in mounts.points() if (match := HALF_RESTORED.search(point))}
    commands = [read_text(f"/proc/{number}/cmdline") for number in os.listdir("/proc") if found and number.isdigit()]
    for point, container in found.items():
        if any(container in command for command in commands):
            continue
        # what is mounted below goes with it
        Commands().run(["umount", "--lazy", point], timeout_s=30)
        if not any(other == point or other.startswith(f"{point}/") for other in mounts.points()):
            folder = os.path.dirname(point) if os.path.basename(point) == RESTORED_ROOT else point
            shutil.rmtree(folder, ignore_errors=True)


def _end_early(why: str) -> None:
    """Once: what follows is the way back, and is not interrupted again."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_commands()
    raise EndedEarly(why)


def _stand_guard(worker: int, messages: socket.socket) -> NoReturn:
    """Waits for the worker; if it was killed, puts things back in its place."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: _pass_on(worker))
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            sys.exit(1)
        if pid == worker:
            break
    if os.WIFEXITED(status):
        sys.exit(os.WEXITSTATUS(status))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_commands()
    descriptors = _received(messages)
    if descriptors and not _released(descriptors[-1]):
        heal(_read(descriptors[-1]))
        _write(descriptors[-1], "")
    message = f"the module was killed (signal {os.WTERMSIG(status)}), and what it had begun was ended; see dmesg for the cause."
    print(json.dumps({"failed": True, "changed": True, "reason": "internal", "msg": message}), flush=True)
    sys.exit(1)


def _pass_on(worker: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(worker, signal.SIGTERM)


def _received(messages: socket.socket) -> list[int]:
    """The locks that the worker took, the last one last."""
    found: list[int] = []
    while True:
        text, descriptors, _, _ = socket.recv_fds(messages, 64, 16)
        found += descriptors
        if not text:
            return found


def _released(descriptor: int) -> bool:
    """Whether the worker let the lock go before it ended."""
    return _read(descriptor) is None


def _take(limit_s: float) -> int:
    """Opens the lock and takes it. Raises CkptError (timeout, bad_input)."""
    until = time.monotonic() + limit_s
    _own_folder()
    while True:
        descriptor = open_private(LOCK_FILE)
        try:
            if take_within(descriptor, until) and is_at(descriptor, LOCK_FILE):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        held = _read(descriptor)
        os.close(descriptor)
        if time.monotonic() >= until:
            raise CkptError(
                "timeout",
                f"{held or 'another gpuckpt operation'} has held {LOCK_FILE} on this node for more than {limit_s:g} s; "
                "wait for it, or end that run.",
            )


def open_private(path: str) -> int:
    """Opens a file that only its owner may open, and makes it if it is missing. Returns the descriptor.

    One that others could open is replaced by a copy: they may have it open, and could hold a lock on it.

    :raises CkptError: bad_input (it is no file, or somebody else's)
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise CkptError(
                "bad_input", f"{path} cannot be opened ({error.strerror}); remove it and try again."
            ) from error
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            os.close(descriptor)
            raise CkptError(
                "bad_input", f"{path} is no file of this user (owner {found.st_uid}); remove it and try again."
            )
        if not found.st_mode & 0o077:
            return descriptor
        os.close(descriptor)
        write_atomically(path, read_text(path), 0o600)


def take_within(descriptor: int, until: float) -> bool:
    """Locks an open file; False if somebody else held it until that moment of the monotonic clock."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(LOCK_POLL_S)


def is_at(descriptor: int, path: str) -> bool:
    """Whether the open file is the one that has this name; it may have been replaced while we waited for it."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)


def _own_folder() -> None:
    """Makes the folder of the locks, or closes it to others. Raises CkptError (bad_input) if it is somebody else's."""
    folder = os.path.dirname(LOCK_FILE)
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise CkptError(
            "bad_input", f"{folder} is no folder of this user (owner {found.st_uid}); remove it and try again."
        )
    if found.st_mode & 0o077:
        os.chmod(folder, 0o700)


def _read(descriptor: int) -> Holder | None:
    """Who is noted in the lock's file; None if nobody is, or it cannot be read."""
    text = os.pread(descriptor, 1 << 16, 0).decode("utf-8", "replace")
    if not text.strip():
        return None
    try:
        raw: dict[str, Any] = json.loads(text)
        return Holder(**{**raw, "pid": int(raw["pid"]), "starttime": int(raw["starttime"])})
    except (ValueError, TypeError, KeyError):
        # half a note of a module that was killed while it wrote it
        return Holder(0, 0, "")


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
