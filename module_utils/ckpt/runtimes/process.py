# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtime `process`: a plain process tree and bare CRIU, which tells what a container costs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..checkpoints import archive
from ..checkpoints.manifest import Layout
from ..checkpoints.preflight import GHOST_LIMIT_BYTES
from ..criu import images, network_lock, remaps
from ..errors import CkptError
from ..parsing import FormatError, pick
from ..server.spec import ALL_CAPABILITIES
from ..system import ending, private, procfs
from ..system.commands import SYSTEM_PATH, Command, Job, Result, end_of_log
from ..system.files import read_json, read_text, remove, write_json
from .base import DumpRequest, Evidence, Instance, OpenLog, RestoreRequest, Runtime, criu_traces, read_evidence

INSTANCES = "/run/gpuckpt/instances"
DUMP_TIMEOUT_S = 900.0
# of a process, as CRIU writes it to a file
NUMBER = re.compile(r"[1-9][0-9]{0,8}")
# endings of the files that remember a server that was started or restored, and one that is being restored
STATES = (".json", ".restoring")


class ProcessRuntime(Runtime):
    """A server in a session of its own, remembered by number and start time so that only it is ever ended."""

    name = "process"
    _child: subprocess.Popen[bytes] | None = None
    # deleted files that our restore was given back, see remaps
    _links: Mapping[str, remaps.Identity] = MappingProxyType({})

    @property
    def _state_path(self) -> str:
        return f"{INSTANCES}/{self.spec.name}.json"

    @property
    def _pidfile(self) -> str:
        return f"{INSTANCES}/{self.spec.name}.pid"

    @property
    def _restoring_path(self) -> str:
        """What a restore is about to make: whoever is killed during it, the next one knows what there may be of it."""
        return f"{INSTANCES}/{self.spec.name}.restoring"

    @property
    def _log_path(self) -> str:
        return self.spec.stdout or f"/var/lib/gpuckpt/{self.spec.name}.log"

    def require(self) -> None:
        self.criu.require(self.commands)

    def instance(self) -> Instance:
        if self._child is not None:
            self._child.poll()
        state = _read_state(self._state_path) or self._adopt_restored()
        if state is None:
            return Instance(exists=bool(ending.living(self._belongs())))
        running = _task_of(state) is not None
        return Instance(True, running, state["pid"] if running else None, state)

    def prepare_start(self) -> None:
        if self.instance().running:
            raise CkptError(
                "runtime_failed",
                f"the server {self.spec.name} runs already (pid {self.instance().pid}); stop it with ckpt_stop first.",
            )
        self.remove()
        private.make_folders(os.path.dirname(self._log_path))

    def start(self) -> Job:
        environment = self._environment()
        argv = [*self._without_rights(), *self.spec.command]
        job = Job(argv)
        self.commands.actions.append(argv)
        if shutil.which(self.spec.command[0], path=environment["PATH"]) is None:
            job.end(127, "", f"{self.spec.command[0]}: no such file or directory, or not an executable one")
            return job
        try:
            with os.fdopen(private.open_file(self._log_path), "wb") as log:
                self._child = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    cwd=self.spec.cwd,
                    start_new_session=True,
                    close_fds=True,
                )
        except OSError as error:
            job.end(127, "", f"{error.filename}: {error.strerror}")
            return job
        self._remember(self._child.pid)
        job.end(0, "", "")
        return job

    def check_start(self, result: Result) -> None:
        if result.rc != 0:
            raise CkptError(
                "runtime_failed",
                f"the server's command cannot be started ({result.stderr.strip()}); "
                "correct server.command, server.cwd, server.stdout or server.env_secret_file.",
            )

    def prepare_checkpoint(self, request: DumpRequest) -> None:
        for folder in (request.layout.folder, request.layout.images, request.layout.work):
            private.make_folder(folder)

    def checkpoint(self, request: DumpRequest) -> Job:
        pid = self.instance().pid
        if pid is None:
            self.require_alive()
        options = ["--tree", str(pid), *self._common_options(request.layout, "dump", request.tcp_established)]
        options += self._network_lock()
        if request.leave_running:
            options.append("--leave-running")
        return self._criu("dump", [*options, *request.flags], DUMP_TIMEOUT_S)

    def finish_checkpoint(self, request: DumpRequest) -> dict[str, Any]:
        pid = self.instance().details.get("pid")
        alive = [task.pid for task in self.tasks()] if request.leave_running else []
        remaps.keep(request.layout.images, request.layout.links, alive)
        # as it was while all were frozen: a server that is left running may have written since
        logged = remaps.size_of(request.layout.images, self._log_path)
        if request.layout.archive:
            archive.pack(self.commands, request.layout.images, request.layout.archive)
            shutil.rmtree(request.layout.images)
        return {"pid": pid, "log": {"path": self._log_path, "bytes": logged}}

    def abandon_checkpoint(self) -> None:
        network_lock.remove_stale(self.commands)

    def prepare_restore(self, request: RestoreRequest) -> list[str]:
        self.stop()
        threads = images.numbers(request.layout.images)
        taken = procfs.wait_gone({task["pid"] for task in request.manifest.tasks} | threads)
        if taken:
            raise CkptError("pid_taken", number_in_use(taken[0]))
        self._rewind_log(request.manifest.instance.get("log") or {})
        private.make_folder(request.layout.work)
        self._links = remaps.put_back(request.layout.links)
        for path in (self._state_path, self._pidfile, *criu_traces(request.layout.work, "restore")):
            remove(path)
        if request.layout.archive:
            shutil.rmtree(request.layout.images, ignore_errors=True)
            return [request.layout.archive]
        return [entry.path for entry in os.scandir(request.layout.images) if entry.is_file()]

    def restore(self, request: RestoreRequest) -> Job:
        layout = request.layout
        numbers = [task["pid"] for task in request.manifest.tasks]
        since = ending.clock_ticks()
        until = since + ending.in_ticks(self.spec.health_timeout_s)
        write_json(self._restoring_path, {"numbers": numbers, "since": since, "until": until})
        procfs.adopt_orphans()
        options = [*self._common_options(layout, "restore", request.manifest.tcp_established), "--restore-detached"]
        options += ["--pidfile", self._pidfile, *request.flags]
        if layout.archive:
            began = time.monotonic()
            archive.unpack(self.commands, layout.archive, layout.images)
            images.require_whole(layout.images)
            self.unpacked = (began, time.monotonic())
        # a restore from damaged images may never end
        return self._criu("restore", options, self.spec.health_timeout_s)

    def evidence(self, action: str, layout: Layout) -> Evidence:
        log, stats = criu_traces(layout.work, action)
        return read_evidence(OpenLog(log), stats)

    def stop(self) -> None:
        was_there, left = ending.end_found(self._belongs())
        if left:
            raise CkptError(
                "runtime_failed",
                f"process {left[0]} of the server {self.spec.name} does not end although it was killed; "
                "it hangs in the kernel or in the GPU's driver: see dmesg.",
            )
        remaps.take_away(self._links)
        if was_there:
            self.require_port_given_back()
        # numbers alone tell nothing any more
        for path in (self._restoring_path, self._pidfile):
            remove(path)

    def remove(self) -> None:
        self.stop()
        remove(self._state_path)

    def running_kin(self) -> list[str]:
        there = os.listdir(INSTANCES) if os.path.isdir(INSTANCES) else []
        files = [os.path.splitext(entry) for entry in there if entry.startswith(f"{self.spec.name}-")]
        names = {name for name, ending_of in files if ending_of in STATES}
        return sorted(name for name in names if ending.living(self._belongs(name)))

    def end_left_behind(self) -> None:
        self.remove()

    def log_tail(self) -> list[str]:
        return end_of_log(read_text(self._log_path))

    def _criu(self, action: str, options: list[str], timeout_s: float) -> Job:
        argv = [self.criu.files.binary, action, *options]
        self.commands.actions.append(argv)
        environment = {"LC_ALL": "C.UTF-8", "HOME": "/root", **self.criu.environment()}
        return Command(argv, environment, timeout_s)

    def _common_options(self, layout: Layout, action: str, tcp_established: bool) -> list[str]:
        options = ["--images-dir", layout.images, "--work-dir", layout.work, "--log-file", f"{action}.log", "-v4"]
        options += ["--ext-unix-sk", "--file-locks", "--link-remap", "--ghost-limit", str(GHOST_LIMIT_BYTES)]
        options.append("--manage-cgroups=ignore")
        if tcp_established:
            options.append("--tcp-established")
        return options

    def _network_lock(self) -> list[str]:
        """CRIU locks the network with iptables; without it a dump fails, even with nothing to lock."""
        return [] if shutil.which("iptables", path=SYSTEM_PATH) else ["--network-lock", "skip"]

    def _belongs(self, name: str | None = None) -> ending.Belongs:
        """What tells the processes of a server: of this one, or of another name.

        By number and start time alone: a number in a pid file may be somebody else's by now.
        """
        path = f"{INSTANCES}/{name or self.spec.name}"
        state, restoring = _read_state(f"{path}.json"), _read_restoring(f"{path}.restoring")
        root = ending.read_process(state["pid"]) if state else None
        # while a session has processes, nobody else is given the number of the one that led it
        leader = state["pid"] if state and (root is None or root.starttime == state["starttime"]) else None

        def belongs(process: ending.Process) -> bool:
            ours = {process.pid, process.session}
            if leader in ours:
                return True
            return restoring is not None and process.starttime in restoring[0] and bool(ours & restoring[1])

        return belongs

    def _adopt_restored(self) -> dict[str, int] | None:
        """The process that CRIU has restored, from the file in which CRIU leaves its number."""
        number = read_text(self._pidfile).strip()
        process = ending.read_process(int(number)) if NUMBER.fullmatch(number) else None
        if process is None or not self._belongs()(process):
            return None
        state = self._remember(process.pid)
        # from now on it is known by its start; numbers alone may become somebody else's
        remove(self._restoring_path)
        return state

    def _remember(self, pid: int) -> dict[str, int] | None:
        task = procfs.read_task(pid)
        if task is None:
            return None
        state = {"pid": pid, "starttime": task.starttime}
        write_json(self._state_path, state)
        return state

    def _without_rights(self) -> list[str]:
        """The words before a command that take root's rights away, but for those that the server is to keep."""
        kept = self.spec.capabilities
        if self.spec.privileged or ALL_CAPABILITIES in kept:
            return []
        wanted = ",".join(["-all", *(f"+{name}" for name in kept)])
        return ["setpriv", f"--bounding-set={wanted}", f"--inh-caps={wanted}"]

    def _environment(self) -> dict[str, str]:
        environment = {"PATH": SYSTEM_PATH, "HOME": "/root", "LANG": "C.UTF-8", **self.spec.env}
        if self.spec.env_secret_file:
            with open(self.spec.env_secret_file, encoding="utf-8") as source:
                pairs = [line.strip().split("=", 1) for line in source if "=" in line and not line.startswith("#")]
            environment.update((key, value) for key, value in pairs)
        return environment

    def _rewind_log(self, log: dict[str, Any]) -> None:
        """CRIU refuses a restore when a file that the server holds open has another size than at the dump."""
        path, size = log.get("path"), log.get("bytes")
        if path and size is not None and _size(path) != size:
            with open(path, "ab") as out:
                out.truncate(size)


def number_in_use(pid: int) -> str:
    """Why CRIU cannot give a process or a thread of the checkpoint its number, and the fix."""
    said = f"process number {pid} of the checkpoint is in use"
    holder = procfs.read_task(pid)
    if holder is None:
        return f"{said}; restore again."
    process = procfs.process_of(pid)
    if process not in (None, pid):
        return f"{said} by a thread ({holder.comm}) of process {process}; end that process, then restore again."
    if holder.state in ("Z", "X"):
        return (
            f"{said} by {holder.comm}, which ended, but its parent (process {holder.ppid}) does not collect it; end that parent, "
            "or, where it is number 1, run an init that collects orphans (in a container: --init), then restore again."
        )
    return f"{said} by {holder.comm}; end that process, then restore again."


def _read_restoring(path: str) -> tuple[range, set[int]] | None:
    """When processes of a restore began (clock ticks), and their numbers; None if there was none.

    Raises CkptError (bad_input).
    """
    try:
        note = read_json(path)
        if note is None:
            return None
        window = range(pick(note, "since", kind=int), pick(note, "until", kind=int) + 1)
        return window, set(pick(note, "numbers", kind=list[int]))
    except FormatError as error:
        raise CkptError(
            "bad_input",
            f"{path} remembers a restore, and cannot be read ({error}): see that it left no process, and remove the file.",
        ) from error


def _read_state(path: str) -> dict[str, int] | None:
    """What was remembered of a server: number and start time; None if nothing was. Raises CkptError (bad_input)."""
    try:
        state = read_json(path)
        return state and {key: pick(state, key, kind=int) for key in ("pid", "starttime")}
    except FormatError as error:
        raise CkptError(
            "bad_input",
            f"{path} remembers a server that runs, and cannot be read ({error}): end that server, and remove the file.",
        ) from error


def _task_of(state: dict[str, int]) -> procfs.Task | None:
    """The live process that was remembered; None if it ended, whoever has its number now."""
    task = procfs.read_task(state["pid"])
    same = task is not None and task.starttime == state["starttime"] and task.state not in ("Z", "X")
    return task if same else None


def _size(path: str) -> int | None:
    return os.path.getsize(path) if os.path.exists(path) else None
