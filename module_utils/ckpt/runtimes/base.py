# SPDX-License-Identifier: GPL-3.0-or-later
"""The interface of a runtime."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..checkpoints.manifest import Layout, Manifest
from ..criu import log as criu_log
from ..criu import stats as criu_stats
from ..criu.choice import Criu
from ..criu.image import ImageError
from ..errors import CkptError
from ..server.spec import ServerSpec
from ..system import ending, procfs
from ..system.commands import Commands, Job, Result
from ..vocabulary import RUNTIME_TRAITS, RuntimeTraits

LOG_POLL_INTERVAL_S = 0.01
LOG_LIMIT_S = 5.0
# CRIU's log of a large server has a few MiB; one of damaged images grew to 24 GB in which a line was repeated
LOG_BYTES = 64 << 20


@dataclass(frozen=True)
class Instance:
    """A server as the runtime knows it. `pid` is its first process on the host, None if none runs."""

    exists: bool
    running: bool = False
    pid: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DumpRequest:
    """How to checkpoint."""

    layout: Layout
    leave_running: bool = False
    tcp_established: bool = False
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class RestoreRequest:
    """How to restore."""

    layout: Layout
    manifest: Manifest
    flags: tuple[str, ...] = ()


@dataclass
class Evidence:
    """What CRIU left behind: its log, when it began (monotonic s), and its own figures."""

    log: str = ""
    started: float | None = None
    stats: dict[str, int] = field(default_factory=dict)


class Runtime(ABC):
    """Starts, checkpoints, restores and stops one server."""

    name: str
    # when the runtime itself unpacked an archive for the restore (monotonic s)
    unpacked: tuple[float, float] | None = None

    def __init__(self, spec: ServerSpec, criu: Criu, commands: Commands) -> None:
        self.spec = spec
        self.criu = criu
        self.commands = commands

    @property
    def traits(self) -> RuntimeTraits:
        """What it differs in from other runtimes."""
        return RUNTIME_TRAITS[self.name]

    @abstractmethod
    def require(self) -> None:
        """Everything this runtime needs is there. Raises CkptError."""

    @abstractmethod
    def instance(self) -> Instance:
        """The server as it is now."""

    @abstractmethod
    def prepare_start(self) -> None:
        """Before the clock starts. Raises CkptError (runtime_failed) if the server exists already."""

    @abstractmethod
    def start(self) -> Job:
        """Begins to start the server."""

    @abstractmethod
    def check_start(self, result: Result) -> None:
        """Raises CkptError if the start command failed."""

    @abstractmethod
    def prepare_checkpoint(self, request: DumpRequest) -> None:
        """Makes the folders; nothing of it is measured."""

    @abstractmethod
    def checkpoint(self, request: DumpRequest) -> Job:
        """Begins to checkpoint."""

    @abstractmethod
    def finish_checkpoint(self, request: DumpRequest) -> dict[str, Any]:
        """After a checkpoint: puts the images where the layout wants them. Returns what a restore must know."""

    @abstractmethod
    def abandon_checkpoint(self) -> None:
        """After a checkpoint that failed: leaves nothing of it outside its folder."""

    @abstractmethod
    def prepare_restore(self, request: RestoreRequest) -> list[str]:
        """Frees what the restore needs, before the clock starts. Returns the files that the restore will read."""

    @abstractmethod
    def restore(self, request: RestoreRequest) -> Job:
        """Begins to restore."""

    @abstractmethod
    def evidence(self, action: str, layout: Layout) -> Evidence:
        """What CRIU left behind for `dump` or `restore`."""

    @abstractmethod
    def stop(self) -> None:
        """Ends the server's processes; what an in-place restore needs is kept."""

    @abstractmethod
    def remove(self) -> None:
        """Ends the server and removes every trace of it."""

    @abstractmethod
    def running_kin(self) -> list[str]:
        """Names of running servers of ours that are named after this one: its name, a hyphen, anything."""

    @abstractmethod
    def end_left_behind(self) -> None:
        """Ends a server that nobody waits for any more; what a checkpoint is restored into is kept."""

    @abstractmethod
    def log_tail(self) -> list[str]:
        """The server's last log lines."""

    def command_stats(self, result: Result) -> dict[str, Any] | None:
        """Figures that the runtime itself printed; None if it is one that prints none."""
        return None

    def tasks(self) -> list[procfs.Task]:
        """The server's processes, parents first."""
        pid = self.instance().pid
        return procfs.tree(pid) if pid else []

    def require_port_given_back(self) -> None:
        """After the server's end. Raises CkptError (runtime_failed) if somebody still listens on its port."""
        holder = ending.wait_port_free(self.spec.port)
        if holder is not None:
            raise CkptError(
                "runtime_failed",
                f"the server {self.spec.name} has ended, but {holder} listens on its port {self.spec.port}; "
                "end that process, or give the server another port.",
            )

    def require_alive(self) -> None:
        """Raises CkptError (server_died) if the server has no process left."""
        if not self.tasks():
            raise CkptError(
                "server_died", "the server ended by itself; see its log lines for the cause.", self.log_tail()
            )


class OpenLog:
    """Holds a log open from its creation on, so that it can be read after podman has deleted it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._wait_for_file, daemon=True)
        self._thread.start()

    def read(self) -> tuple[str, float]:
        """Text and time of the last write; the log is let go."""
        self._stop.set()
        self._thread.join(LOG_LIMIT_S)
        if self._descriptor is None:
            return "", 0.0
        with os.fdopen(self._descriptor, "rb") as log:
            self._descriptor = None
            status = os.fstat(log.fileno())
            return read_bounded(log, status.st_size), status.st_mtime

    def _wait_for_file(self) -> None:
        while self._descriptor is None:
            try:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                if self._stop.wait(LOG_POLL_INTERVAL_S):
                    return


def read_bounded(log: BinaryIO, size: int) -> str:
    """A log; of one that is too long its beginning and its end, on lines of their own."""
    if size <= LOG_BYTES:
        return log.read(LOG_BYTES).decode("utf-8", "replace")
    beginning = log.read(LOG_BYTES // 2)
    log.seek(size - LOG_BYTES // 2)
    return (beginning + b"\n" + log.read(LOG_BYTES // 2)).decode("utf-8", "replace")


def read_evidence(log: OpenLog, stats_path: str) -> Evidence:
    """Evidence from a log and a stats image."""
    text, last_write = log.read()
    try:
        stats = criu_stats.read_stats(stats_path)
    except ImageError:
        stats = {}
    return Evidence(text, criu_log.start_of_log(last_write, criu_log.parse(text)), stats)


def criu_traces(folder: str, action: str) -> tuple[str, str]:
    """Log and stats image that CRIU leaves in its work folder for `dump` or `restore`."""
    return f"{folder}/{action}.log", f"{folder}/stats-{action}"
