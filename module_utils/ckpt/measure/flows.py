# SPDX-License-Identifier: GPL-3.0-or-later
"""What the flows share: a context for one operation, and the watch on a server that is coming up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..criu import log as criu_log
from ..criu.choice import Criu, parse_criu
from ..cuda import processes as cuda
from ..errors import CkptError
from ..runtimes import make_runtime
from ..runtimes.base import Evidence, Runtime
from ..server.client import Client, Completion
from ..server.spec import ServerSpec, parse_server
from ..system import procfs
from ..system.commands import Commands, Job, Result
from ..vocabulary import MEASURED_KINDS
from .conditions import Watch
from .record import Record
from .results import CriuRun, Span

ALIVE_CHECK_INTERVAL_S = 1.0
STATE_POLL_INTERVAL_S = 0.005
WATCH_LIMIT_S = 90.0
LOG_TAIL_LINES = 12


@dataclass
class Operation:
    """One call of a module: the server, its runtime, the CRIU build, and the record under construction."""

    spec: ServerSpec
    criu: Criu
    commands: Commands
    runtime: Runtime
    client: Client
    record: Record
    log_lines: list[str] = field(default_factory=list)


def open_operation(kind: str, params: Mapping[str, Any]) -> Operation:
    """Checks the options that all flows share. Raises CkptError (bad_input)."""
    commands = Commands()
    spec = parse_server(params["server"], params["runtime"])
    criu = parse_criu(params.get("criu") or {})
    record = Record(kind, params.get("record") or {})
    if kind in MEASURED_KINDS and params.get("record"):
        record.conditions = Watch()
    runtime = make_runtime(params["runtime"], spec, criu, commands)
    return Operation(spec, criu, commands, runtime, Client(spec), record)


def describe_criu(operation: Operation) -> None:
    """Puts build and switches into the record."""
    operation.record.build = operation.criu.as_record()
    operation.record.switches = operation.criu.effective_switches()


def require_port_free(operation: Operation) -> None:
    """Raises CkptError (port_taken) if somebody listens on the server's port already."""
    holder = procfs.port_holder(operation.spec.port)
    if holder is not None:
        raise CkptError(
            "port_taken",
            f"port {operation.spec.port} of this node is in use by {holder}; "
            "stop that program, or give the server another port.",
        )


class AliveWatch:
    """Looks every second, between the health polls, whether the server still has a process."""

    def __init__(self, runtime: Runtime, job: Job, on_end: Callable[[Job], None]) -> None:
        self._runtime = runtime
        self._job = job
        self._on_end = on_end
        self._stop = threading.Event()
        self._error: CkptError | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> AliveWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # it may be asking a podman that hangs
        self._thread.join(WATCH_LIMIT_S)

    def check(self) -> None:
        """Raises what the watch has found, and what the command's end says."""
        if self._error is not None:
            raise self._error
        if self._job.done:
            self._on_end(self._job)

    def _watch(self) -> None:
        while not self._stop.wait(ALIVE_CHECK_INTERVAL_S):
            if not self._job.done:
                continue
            try:
                self._runtime.require_alive()
            except CkptError as error:
                self._error = error
                return


class CudaWatch:
    """Stamps the moment when every CUDA process runs again (T2)."""

    def __init__(self, operation: Operation, job: Job, nspids: Sequence[int]) -> None:
        self.running_at: float | None = None
        self._operation = operation
        self._job = job
        self._nspids = set(nspids)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self._nspids:
            self._thread.start()

    def stop(self) -> bool | None:
        """Ends the watch. True if all ran, False if not, None if the checkpoint has no CUDA process."""
        if not self._nspids:
            return None
        self._stop.set()
        # a driver that hangs does not tell the state of its processes
        self._thread.join(WATCH_LIMIT_S)
        return self.running_at is not None

    def _watch(self) -> None:
        while not self._stop.wait(STATE_POLL_INTERVAL_S):
            if self._job.done and self._look():
                return
        self._look()

    def _look(self) -> bool:
        driver = cuda.Driver(self._operation.commands, self._operation.criu.files.cuda_checkpoint)
        tasks = [task for task in self._operation.runtime.tasks() if task.nspid in self._nspids]
        states = driver.states(task.pid for task in tasks)
        if len(tasks) == len(self._nspids) and all(states.get(task.pid) == cuda.RUNNING for task in tasks):
            self.running_at = time.monotonic()
        return self.running_at is not None


def send_canary(operation: Operation) -> Completion:
    """The canary, with T4 and T5 in the record."""
    completion = operation.client.complete(operation.spec.canary)
    operation.record.mark("T4", completion.first_token)
    operation.record.mark("T5", completion.last_token)
    operation.record.take(completion)
    return completion


def same_answer(before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether two canary answers are the same, however the stream was cut into events."""
    return "".join(before) == "".join(after)


def read_run(runtime: Runtime, evidence: Evidence, result: Result, plan: Sequence[criu_log.Phase]) -> CriuRun:
    """What a checkpoint or restore left behind: figures of CRIU and of the runtime, if it is one that tells some, and phases."""
    printed = runtime.command_stats(result)
    spans = criu_log.spans(evidence.log)
    sizes = {name: size for name, (_, _, size) in spans.items()}
    return CriuRun(
        stats={**evidence.stats, "kernel_cache": criu_log.kernel_cache(evidence.log)},
        runtime_stats={} if printed is None else {runtime.name: printed},
        phases={
            **({} if runtime.unpacked is None else {"unpack": runtime.unpacked}),
            **_phases(evidence, result, plan),
            **{name: (start, end) for name, (start, end, _) in spans.items()},
        },
        read_bytes=sizes.get("read"),
        mapped_bytes=sizes.get("mapped"),
    )


def _phases(evidence: Evidence, result: Result, plan: Sequence[criu_log.Phase]) -> dict[str, Span]:
    """Phases of CRIU's log, and what the runtime does around CRIU."""
    if evidence.started is None:
        return {}
    lines = criu_log.parse(evidence.log)
    found = {**criu_log.phases(lines, plan), **criu_log.script_phases(lines)}
    criu_ended = min(evidence.started + lines[-1].seconds, result.ended)
    return {
        **{name: (evidence.started + start, evidence.started + end) for name, (start, end) in found.items()},
        "before_criu": (result.started, max(result.started, evidence.started)),
        "after_criu": (criu_ended, result.ended),
    }


def explain(evidence: Evidence, stderr: str, fallback: str, message: str) -> CkptError:
    """The error for a CRIU run that failed: a known cause from the log, else the first error line."""
    text = f"{evidence.log}\n{stderr}"
    found = criu_log.cause_lines(evidence.log) or stderr.strip().splitlines()
    lines = found if len(found) <= LOG_TAIL_LINES else [*found[:2], *found[2 - LOG_TAIL_LINES :]]
    signature = criu_log.classify(text)
    if signature is not None:
        return CkptError(signature.reason, f"{message}: {signature.message}.", lines)
    cause = "; ".join(line.strip() for line in lines[:2]) or "no error line in its log"
    return CkptError(fallback, f"{message}: {cause}. See the log lines.", lines)


def cuda_tasks(operation: Operation, tasks: Sequence[procfs.Task]) -> list[procfs.Task]:
    """Those of the processes that hold CUDA state. Raises CkptError (cuda_not_running) if there is none."""
    driver = cuda.Driver(operation.commands, operation.criu.files.cuda_checkpoint)
    states = driver.states(task.pid for task in tasks)
    found = [task for task in tasks if task.pid in states]
    if not found:
        raise CkptError(
            "cuda_not_running",
            "the server is said to use a GPU, but the driver knows no CUDA state of its processes; "
            "set server.gpu: false, or use driver 570 or newer with this node's own cuda-checkpoint.",
        )
    return found
