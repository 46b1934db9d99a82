# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtime `own_pids`, which is for tests alone: a server that is process 1 of a PID namespace of its own.

Real processes and real CRIU. It shows what a runtime needs: this file, and the lines at its end that register it, as those
of users are registered. Unlike `process` it has a first process that the kernel takes all others with, and numbers
that are free whenever it is restored. What a killed module leaves half restored, and files without a name, it does not
know of; both are matters of runtimes that users run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.ckpt.checkpoints import archive
from ansible.module_utils.ckpt.checkpoints.manifest import Layout
from ansible.module_utils.ckpt.criu import images, remaps
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.runtimes import RUNTIMES
from ansible.module_utils.ckpt.runtimes.base import (
    DumpRequest,
    Evidence,
    Instance,
    OpenLog,
    RestoreRequest,
    Runtime,
    criu_traces,
    read_evidence,
)
from ansible.module_utils.ckpt.system import ending, private, procfs
from ansible.module_utils.ckpt.system.commands import Command, Job, Result, system_environment, tail
from ansible.module_utils.ckpt.system.files import read_json, read_text, remove, write_json
from ansible.module_utils.ckpt.vocabulary import RUNTIME_TRAITS, RuntimeTraits

STATES = Path("/run/gpuckpt-tests/own_pids")
START_LIMIT_S = 5.0
DUMP_LIMIT_S = 300.0
# a session of its own, too: CRIU does not dump a process whose session is led from outside its namespace
ENTER = ("unshare", "--pid", "--fork", "setsid")


class OwnPids(Runtime):
    """A namespace is its first process, by number and start time: whoever ends that ends all of it."""

    name = "own_pids"

    @property
    def _state(self) -> Path:
        return STATES / f"{self.spec.name}.json"

    @property
    def _pidfile(self) -> Path:
        return STATES / f"{self.spec.name}.pid"

    def require(self) -> None:
        """CRIU; `unshare` is part of every distribution."""
        self.criu.require(self.commands)

    def instance(self) -> Instance:
        """The first process, unless it has ended."""
        first = self._first()
        return Instance(self._state.exists(), first is not None, None if first is None else first.pid)

    def prepare_start(self) -> None:
        """No server of the name runs."""
        if self._first() is not None:
            raise CkptError("runtime_failed", f"{self.spec.name} runs already; stop it with ckpt_stop first.")
        private.make_folders(str(STATES))

    def start(self) -> Job:
        """`unshare` waits outside for the first process."""
        job = Job([*ENTER, *self.spec.command])
        self.commands.actions.append(job.argv)
        with os.fdopen(private.open_file(self._log), "wb") as log:
            outside = subprocess.Popen(
                job.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=system_environment(self.spec.env),
                cwd=self.spec.cwd,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_LIMIT_S
        while (first := _leader_below(outside.pid)) is None and outside.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if first is not None:
            self._remember(first)
        job.end(0 if first is not None else outside.poll() or 1, "", read_text(self._log))
        return job

    def check_start(self, result: Result) -> None:
        """The command could be started."""
        if result.rc != 0:
            raise CkptError("runtime_failed", f"{self.spec.name} cannot be started.", tail(result.stderr))

    def prepare_checkpoint(self, request: DumpRequest) -> None:
        """The checkpoint's folders."""
        for folder in (request.layout.folder, request.layout.images, request.layout.work):
            private.make_folder(folder)

    def checkpoint(self, request: DumpRequest) -> Job:
        """CRIU sees by itself that the tree has a namespace."""
        options = ["--tree", str(self.instance().pid), "--network-lock", "skip"]
        options += ["--leave-running"] if request.leave_running else []
        options += ["--tcp-established"] if request.tcp_established else []
        return self._criu("dump", request.layout, [*options, *request.flags], DUMP_LIMIT_S)

    def finish_checkpoint(self, request: DumpRequest) -> dict[str, Any]:
        """A restore must know how long the log was."""
        size = remaps.size_of(request.layout.images, self._log)
        if request.layout.archive:
            archive.pack(self.commands, request.layout.images, request.layout.archive)
            shutil.rmtree(request.layout.images)
        return {"log_bytes": size}

    def abandon_checkpoint(self) -> None:
        """Nothing lies outside the checkpoint's folder."""

    def prepare_restore(self, request: RestoreRequest) -> list[str]:
        """No number has to be free outside the namespace; a file must be as long as at the dump."""
        self.stop()
        if (size := request.manifest.instance.get("log_bytes")) is not None:
            os.truncate(self._log, size)
        private.make_folder(request.layout.work)
        for path in criu_traces(request.layout.work, "restore"):
            remove(path)
        if request.layout.archive:
            shutil.rmtree(request.layout.images, ignore_errors=True)
            return [request.layout.archive]
        return [entry.path for entry in os.scandir(request.layout.images) if entry.is_file()]

    def restore(self, request: RestoreRequest) -> Job:
        """A new namespace, with the same numbers in it."""
        layout = request.layout
        options = ["--restore-detached", "--pidfile", str(self._pidfile), *request.flags]
        options += ["--tcp-established"] if request.manifest.tcp_established else []
        if layout.archive:
            began = time.monotonic()
            archive.unpack(self.commands, layout.archive, layout.images)
            images.require_whole(layout.images)
            self.unpacked = (began, time.monotonic())
        return self._criu("restore", layout, options, self.spec.health_timeout_s)

    def evidence(self, action: str, layout: Layout) -> Evidence:
        """CRIU's log and figures lie in the work folder."""
        log, stats = criu_traces(layout.work, action)
        return read_evidence(OpenLog(log), stats)

    def stop(self) -> None:
        """The kernel ends the rest of the namespace."""
        first = self._first()
        if first is not None:
            if ending.end_all(lambda process: (process.pid, process.starttime) == (first.pid, first.starttime)):
                raise CkptError("runtime_failed", f"{self.spec.name} does not end although it was killed.")
            self.require_port_given_back()
        remove(str(self._pidfile))

    def remove(self) -> None:
        """Nothing but the note of it is left then."""
        self.stop()
        remove(str(self._state))

    def running_kin(self) -> list[str]:
        """By their notes."""
        names = {path.stem for path in STATES.glob(f"{self.spec.name}-*")}
        return sorted(name for name in names if self._first(name) is not None)

    def end_left_behind(self) -> None:
        """No checkpoint is restored into what is left of it."""
        self.remove()

    def log_tail(self) -> list[str]:
        """Its output."""
        return tail(read_text(self._log))

    @property
    def _log(self) -> str:
        return self.spec.stdout or str(STATES / f"{self.spec.name}.log")

    def _first(self, name: str | None = None) -> procfs.Task | None:
        """The first process of a server, if it lives; one that CRIU has restored is remembered from now on."""
        name = name or self.spec.name
        pidfile = STATES / f"{name}.pid"
        restored = read_text(str(pidfile)).strip()
        if restored and (task := procfs.read_task(int(restored))) is not None and _was_there_before(task, pidfile):
            self._remember(task, name)
            remove(str(pidfile))
        state = read_json(str(STATES / f"{name}.json"))
        task = procfs.read_task(state["pid"]) if state else None
        lives = task is not None and task.starttime == state["starttime"] and task.state not in ("Z", "X")
        return task if lives else None

    def _remember(self, first: procfs.Task, name: str | None = None) -> None:
        write_json(str(STATES / f"{name or self.spec.name}.json"), {"pid": first.pid, "starttime": first.starttime})

    def _criu(self, action: str, layout: Layout, options: list[str], limit_s: float) -> Job:
        argv = [self.criu.files.binary, action, "--images-dir", layout.images, "--work-dir", layout.work]
        argv += ["--log-file", f"{action}.log", "-v4", "--ext-unix-sk", "--file-locks", "--manage-cgroups=ignore"]
        argv += options
        self.commands.actions.append(argv)
        return Command(argv, {"LC_ALL": "C.UTF-8", "HOME": "/root", **self.criu.environment()}, limit_s)


def _was_there_before(task: procfs.Task, file: Path) -> bool:
    """Whether the process was there, to a second, when the file was written; later its number may be somebody else's."""
    try:
        age_s = time.time() - file.stat().st_mtime
    except FileNotFoundError:
        # another thread has remembered it meanwhile
        return False
    return ending.clock_ticks() - task.starttime + ending.in_ticks(1.0) >= ending.in_ticks(age_s)


def _leader_below(pid: int) -> procfs.Task | None:
    """The child that leads a session within its namespace, None as long as there is none."""
    for task in procfs.tree(pid)[1:]:
        process = ending.read_process(task.pid)
        if task.nspid == 1 and process is not None and process.session == task.pid:
            return task
    return None


RUNTIME_TRAITS[OwnPids.name] = RuntimeTraits()
RUNTIMES[OwnPids.name] = OwnPids
