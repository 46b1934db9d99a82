# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of a cold start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..cuda import processes as cuda
from ..safety import leftovers
from ..safety.locks import exclusive
from . import flows
from .options import StartOptions
from .record import Record
from .results import Checks, Counter, Phases, Span


def begin(kind: str, params: Mapping[str, Any]) -> tuple[flows.Operation, StartOptions]:
    """Checks the options. Raises CkptError (bad_input)."""
    return flows.open_operation(kind, params), StartOptions.from_params(params)


def run(operation: flows.Operation, options: StartOptions) -> None:
    """Starts the server, waits until it answers, and sends the canary. Raises CkptError, and then leaves nothing behind."""
    record = operation.record
    runtime = operation.runtime
    runtime.require()
    flows.describe_criu(operation)
    with exclusive("ckpt_start", record.run_id):
        runtime.prepare_start()
        leftovers.note(record.run_id, server=(runtime.name, operation.spec.name))
        flows.require_port_free(operation)
        record.gpu_mem_before = cuda.memory_used_bytes(operation.commands)
        operation.client.ready()
        try:
            _measure(operation)
        except BaseException:
            record.log_tail = runtime.log_tail()
            _remove(operation)
            raise
        if options.stop_after:
            _remove(operation)
            record.gpu_mem_after = cuda.memory_used_bytes(operation.commands)


def _remove(operation: flows.Operation) -> None:
    operation.runtime.remove()
    leftovers.forget(server=(operation.runtime.name, operation.spec.name))


def _measure(operation: flows.Operation) -> None:
    record, runtime = operation.record, operation.runtime
    job = runtime.start()
    record.mark("T0", job.started)
    with flows.AliveWatch(runtime, job, lambda ended: runtime.check_start(ended.wait())) as watch:
        record.mark("T3", operation.client.wait_healthy(watch.check))
    flows.send_canary(operation)
    result = job.wait()
    record.mark("T1", result.ended)
    record.take(Phases({"start_command": (result.started, result.ended), **_serving_phases(record, result.ended)}))
    record.take(Checks(exit_zero=True, pids_alive=bool(runtime.tasks())))
    record.take(Counter(after=operation.client.counter()))


def _serving_phases(record: Record, command_ended: float) -> dict[str, Span]:
    ready, first_token = record.marks["T3"], record.marks["T4"]
    if ready is None or first_token is None:
        return {}
    return {"load": (min(command_ended, ready), ready), "first_token": (ready, first_token)}
