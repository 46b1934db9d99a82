# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of a checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..checkpoints import digests, footprint, preflight, replacement
from ..checkpoints.manifest import Layout, Manifest
from ..criu import images, stuck
from ..criu import log as criu_log
from ..cuda import processes as cuda
from ..errors import CkptError
from ..runtimes.base import DumpRequest
from ..safety import leftovers
from ..safety.locks import exclusive, lane_settings
from ..server import slimming
from ..system import procfs
from ..system.commands import Result
from . import flows, prefetch
from .options import CheckpointOptions
from .results import Checks, Counter, ImageSizes, Sizes

# what CRIU writes in addition to the pages: images of kinds that are small, and its log
OVERHEAD_BYTES = 16 << 20
# how long a server that served may take to answer, before the checkpoint and after one that failed
ANSWER_LIMIT_S = 30.0
RECOVERY_LIMIT_S = 10.0
# T: by a signal, t: by a tracer
STOPPED_STATES = ("T", "t")

# next to the images
LOG_BYTES = 4 << 20


def begin(kind: str, params: Mapping[str, Any]) -> tuple[flows.Operation, CheckpointOptions]:
    """Checks the options. Raises CkptError (bad_input)."""
    return flows.open_operation(kind, params), CheckpointOptions.from_params(params)


def run(operation: flows.Operation, options: CheckpointOptions) -> Manifest:
    """Checkpoints the server. Raises CkptError; the server is then left serving, or stopped if it died."""
    record, runtime = operation.record, operation.runtime
    layout = options.layout
    record.slimming, record.source = options.slimming, layout.source
    runtime.require()
    flows.describe_criu(operation)
    with exclusive("ckpt_checkpoint", record.run_id, layout.folder):
        replacement.heal(layout.folder)
        replacement.require_replaceable(layout.folder)
        _require_running(operation)
        slimming.require_known(operation.client, options.slimming)
        leftovers.note(record.run_id, checkpoint=layout.folder)
        with _end_as_the_cause(operation):
            manifest = _describe(operation, options)
        staged_before = prefetch.staged_files(operation.spec)
        try:
            slimming.slim(operation.client, options.slimming)
            manifest.staged = sorted(prefetch.staged_files(operation.spec) - staged_before)
            with _end_as_the_cause(operation):
                _describe_tasks(operation, manifest)
                _preflight(operation, options, manifest)
            _dump(operation, options, manifest)
        except CkptError as error:
            error.message += f" {_leave_serving(operation, options.slimming)}"
            raise
        except BaseException:
            _leave_serving(operation, options.slimming)
            raise
        # the replaced checkpoint goes now; whatever interrupts that, the new one is good
        replacement.heal(layout.folder)
        if options.leave_running:
            slimming.wake(operation.client, options.slimming)
        record.gpu_mem_after = cuda.memory_used_bytes(operation.commands)
    return manifest


def _require_running(operation: flows.Operation) -> None:
    if not operation.runtime.instance().running:
        raise CkptError(
            "server_died",
            f"there is no running server {operation.spec.name} to checkpoint; start it with ckpt_start first.",
        )


def _describe(operation: flows.Operation, options: CheckpointOptions) -> Manifest:
    """What must be the same after a restore: the canary's answer and the counter."""
    record, client = operation.record, operation.client
    client.wait_healthy(lambda: _require_going(operation), ANSWER_LIMIT_S, option=None)
    before = client.counter()
    completion = client.complete(operation.spec.canary)
    record.take(completion)
    counter = client.counter_reaches(before + 1) if before is not None else None
    step = 1 if before is None or counter is None else counter - before
    if step < 1:
        raise CkptError(
            "bad_input",
            f"the counter {operation.spec.counter_metric} did not grow with a request, so it cannot prove that a restored server "
            "is the same one: name another one (server.counter_metric), or none.",
        )
    record.take(Counter(before=counter))
    record.gpu_mem_before = cuda.memory_used_bytes(operation.commands)
    return Manifest(
        name=options.name,
        runtime=operation.runtime.name,
        server=operation.spec.name,
        created_at=record.started_at,
        source=options.layout.source,
        slimming=options.slimming,
        tcp_established=options.tcp_established,
        flags=list(options.flags),
        counter=counter,
        counter_step=step,
        canary_tokens=completion.tokens,
        memory_digest=client.memory_digest(),
        build=operation.criu.as_record(),
        switches=operation.criu.effective_switches(),
    )


def _require_going(operation: flows.Operation) -> None:
    """Asked of a server that does not answer. Raises CkptError if it ended (server_died) or is stopped (server_unhealthy)."""
    tasks = operation.runtime.tasks()
    if not tasks:
        operation.runtime.require_alive()
    elif tasks[0].state in STOPPED_STATES:
        raise CkptError(
            "server_unhealthy",
            f"the server {operation.spec.name} does not answer: its process {tasks[0].pid} ({tasks[0].comm}) is stopped; "
            f"let it go on (kill -CONT {tasks[0].pid}, or end what traces it), then take the checkpoint again.",
        )


@contextmanager
def _end_as_the_cause(operation: flows.Operation) -> Iterator[None]:
    """Whatever fails with a server that has ended meanwhile: its end is the cause."""
    try:
        yield
    except CkptError:
        operation.runtime.require_alive()
        raise


def _describe_tasks(operation: flows.Operation, manifest: Manifest) -> None:
    """The processes, and what they hold on the GPU after the slimming."""
    tasks = operation.runtime.tasks()
    manifest.tasks = [task.as_dict() for task in tasks]
    if operation.spec.gpu:
        gpu_tasks = flows.cuda_tasks(operation, tasks)
        manifest.cuda_nspids = [task.nspid for task in gpu_tasks]
        used = cuda.process_gpus(operation.commands, (task.pid for task in gpu_tasks))
        manifest.gpus = sorted({gpu for gpus in used.values() for gpu in gpus})
        manifest.gpu_bytes = cuda.process_bytes(operation.commands, (task.pid for task in gpu_tasks))
        operation.record.take(Sizes(gpu=manifest.gpu_bytes))


def _preflight(operation: flows.Operation, options: CheckpointOptions, manifest: Manifest) -> None:
    """Finds what would fail before anything is frozen."""
    layout = options.layout
    tasks = operation.runtime.tasks()
    redump = footprint.redump_of(operation.criu, layout.folder)
    pids = [task.pid for task in tasks]
    sharing = operation.spec.shares_while(options.slimming)
    gpus = cuda.process_gpus(operation.commands, pids if sharing else [])
    how = preflight.Dump(operation.runtime.traits.in_container, options.tcp_established, redump.as_memory, gpus)
    preflight.require_restorable(tasks, how)
    if not redump.as_memory:
        replacement.require_unmapped(layout.folder, pids)
    # Connections between the server's own processes (vLLM's have some) come back whole: both ends are in the images.
    manifest.tcp_established = options.tcp_established or bool(procfs.open_tcp_connections(pids))
    needed = footprint.dump_bytes(pids, redump) + (manifest.gpu_bytes or 0) + LOG_BYTES
    _require_space(layout, needed, replacement.freed_bytes(layout.folder, pids))


def _require_space(layout: Layout, needed: int, replaced: int) -> None:
    """The images of an uncompressed dump must fit; archives may shrink, and are left to the dump itself.

    They are made next to the checkpoint that they replace, whose removal would free `replaced` bytes.
    """
    if layout.archive:
        return
    folder = layout.folder
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if free < needed:
        hint = f" Removing the checkpoint that it replaces would free {replaced >> 20} MiB." if replaced else ""
        raise CkptError(
            "store_full",
            f"the checkpoint needs about {needed >> 20} MiB and {folder} has {free >> 20} MiB left; "
            f"delete old checkpoints, or make the store larger (checkpoint_store_size_mib).{hint}",
        )


def _dump(operation: flows.Operation, options: CheckpointOptions, manifest: Manifest) -> None:
    """Dumps next to the checkpoint that is replaced, which is good until the new one is complete."""
    record, runtime, layout = operation.record, operation.runtime, options.layout
    new = replacement.begin(layout)
    request = DumpRequest(new, options.leave_running, manifest.tcp_established, options.flags)
    try:
        runtime.prepare_checkpoint(request)
        with lane_settings(operation.criu):
            result = stuck.wait(runtime.checkpoint(request), [task["pid"] for task in manifest.tasks])
        record.mark("T0", result.started)
        record.mark("T1", result.ended)
        _judge_dump(operation, new, manifest, result)
        sizes = _measure_images(operation, new, manifest)
        record.take(sizes)
        if manifest.gpu_bytes is not None:
            record.take(Checks(image_bytes=sizes.total >= manifest.gpu_bytes))
            _require_gpu_bytes(sizes, manifest.gpu_bytes)
        manifest.instance = runtime.finish_checkpoint(request)
        record.take(Sizes(archive=os.path.getsize(new.archive) if new.archive else None))
        record.take(digests.take(new, manifest, options.digests))
        manifest.write(new)
        replacement.finish(layout.folder)
    except BaseException:
        runtime.abandon_checkpoint()
        replacement.abandon(layout, "dump.log")
        raise


def _judge_dump(operation: flows.Operation, layout: Layout, manifest: Manifest, result: Result) -> None:
    record, runtime = operation.record, operation.runtime
    evidence = runtime.evidence("dump", layout)
    record.take(flows.read_run(runtime, evidence, result, criu_log.DUMP_PHASES))
    record.take(Checks(exit_zero=result.rc == 0))
    if result.rc != 0:
        error = flows.explain(evidence, result.stderr, "criu_failed", f"the checkpoint of {operation.spec.name} failed")
        # a complete dump ends the server itself, and podman may fail to pack it
        if not runtime.tasks() and not criu_log.dump_completed(evidence.log):
            error.reason = "server_died"
            error.message = (
                f"the server {operation.spec.name} ended during its dump: it was killed, or it crashed; see its log lines and "
                f"dmesg for the cause, and start it again. CRIU's part: {error.message}"
            )
        raise error
    failures = criu_log.silent_failures(evidence.log, manifest.plain_processes)
    record.take(Checks(no_error_line=not failures))
    if failures:
        raise CkptError("criu_failed", "CRIU exited 0, but its log shows that a plugin or hook failed.", failures)


def _measure_images(operation: flows.Operation, layout: Layout, manifest: Manifest) -> ImageSizes:
    if not layout.archive or not operation.runtime.traits.reads_archives:
        report = images.require_whole(layout.images)
        sizes = ImageSizes(report.bytes_by_kind, report.total_bytes)
    else:
        sizes = ImageSizes(*images.inspect_archive(operation.commands, layout.archive))
    manifest.images, manifest.images_total = dict(sizes.by_kind), sizes.total
    return sizes


def _require_gpu_bytes(sizes: ImageSizes, gpu_bytes: int) -> None:
    """Raises CkptError (gpu_bytes_missing) if the images cannot hold what was in use on the GPU."""
    if sizes.total < gpu_bytes:
        raise CkptError(
            "gpu_bytes_missing",
            f"the images hold {sizes.total >> 20} MiB, less than the {gpu_bytes >> 20} MiB that "
            "were in use on the GPU: the CUDA plugin did not save it; see that plugin and cuda-checkpoint are of "
            "one build.",
        )


def _leave_serving(operation: flows.Operation, mode: str) -> str:
    """After a failure: the server answers as before, or it is ended so that nothing is stuck. Says which.

    What an older checkpoint is restored into stays.
    """
    runtime = operation.runtime
    operation.record.log_tail = runtime.log_tail()
    if runtime.instance().running:
        try:
            slimming.wake(operation.client, mode)
            operation.client.wait_healthy(runtime.require_alive, RECOVERY_LIMIT_S, option=None)
            return "The server goes on serving."
        except CkptError as error:
            operation.log_lines.append(f"the server did not recover: {error.message}")
    runtime.end_left_behind()
    return "The server had ended or did not answer any more, and was stopped."
