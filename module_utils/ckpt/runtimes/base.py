# SPDX-License-Identifier: GPL-3.0-or-later
"""The interface of a runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.ckpt import criu_log, criu_stats, procfs
from ansible.module_utils.ckpt.commands import Commands, Job, Result
from ansible.module_utils.ckpt.criu import Criu
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.files import read_text
from ansible.module_utils.ckpt.manifest import Layout, Manifest
from ansible.module_utils.ckpt.spec import ServerSpec

STOP_TIMEOUT_S = 15.0


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

    def __init__(self, spec: ServerSpec, criu: Criu, commands: Commands) -> None:
        self.spec = spec
        self.criu = criu
        self.commands = commands

    @abstractmethod
    def require(self) -> None:
        """Everything this runtime needs is there. Raises CkptError."""

    @abstractmethod
    def instance(self) -> Instance:
        """The server as it is now."""

    @abstractmethod
    def start(self) -> Job:
        """Begin to start the server."""

    @abstractmethod
    def check_start(self, result: Result) -> None:
        """Raises CkptError if the start command failed."""

    @abstractmethod
    def prepare_checkpoint(self, request: DumpRequest) -> None:
        """Make the folders; nothing of it is measured."""

    @abstractmethod
    def checkpoint(self, request: DumpRequest) -> Job:
        """Begin to checkpoint."""

    @abstractmethod
    def finish_checkpoint(self, request: DumpRequest) -> dict[str, Any]:
        """After a checkpoint: put the images where the layout wants them. Returns what a restore must know."""

    @abstractmethod
    def abandon_checkpoint(self, request: DumpRequest) -> None:
        """After a checkpoint that failed: leave no partial images and no mount."""

    @abstractmethod
    def prepare_restore(self, request: RestoreRequest) -> list[str]:
        """Free what the restore needs, before the clock starts. Returns the files that the restore will read."""

    @abstractmethod
    def restore(self, request: RestoreRequest) -> Job:
        """Begin to restore."""

    @abstractmethod
    def evidence(self, action: str, layout: Layout) -> Evidence:
        """What CRIU left behind for `dump` or `restore`."""

    @abstractmethod
    def stop(self) -> None:
        """End the server's processes; what an in-place restore needs is kept."""

    @abstractmethod
    def remove(self) -> None:
        """End the server and remove every trace of it."""

    @abstractmethod
    def log_tail(self) -> list[str]:
        """The server's last log lines."""

    def command_stats(self, result: Result) -> dict[str, Any]:
        """Figures that the runtime itself printed."""
        return {}

    def tasks(self) -> list[procfs.Task]:
        """The server's processes, parents first."""
        pid = self.instance().pid
        return procfs.tree(pid) if pid else []

    def require_alive(self) -> None:
        """Raises CkptError (server_died) if the server has no process left."""
        if not self.tasks():
            raise CkptError(
                "server_died", "the server ended by itself; see its log lines for the cause.", self.log_tail()
            )


def read_evidence(log_path: str, stats_path: str) -> Evidence:
    """Evidence from a log and a stats image."""
    text = read_text(log_path)
    try:
        stats = criu_stats.read_stats(stats_path)
    except ValueError:
        stats = {}
    return Evidence(text, criu_log.start_of_log(log_path, criu_log.parse(text)), stats)


def still_there(pids: Iterable[int]) -> list[int]:
    """Processes that are not gone after a while."""
    return procfs.wait_gone(pids, STOP_TIMEOUT_S)
