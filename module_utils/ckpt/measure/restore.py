# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of a restore: the clock, and the proof that it is the same server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ..checkpoints import digests, manifest, replacement
from ..checkpoints.manifest import Layout, Manifest
from ..criu import images, network_lock
from ..criu import log as criu_log
from ..cuda import processes as cuda
from ..errors import CkptError
from ..runtimes.base import RestoreRequest, Runtime
from ..safety.locks import exclusive, lane_settings
from ..server import slimming
from ..system import pagecache, private
from ..system.commands import Job, Result
from ..vocabulary import REASONS, lane_problems
from . import flows, prefetch, resident_pool
from .options import RestoreOptions, Untaken
from .results import Checks, Counter, ImageSizes, PageCache, Phases, Sizes

DEVICE_MAP = "CRIU_CUDA_DEVICE_MAP"


def begin(kind: str, params: Mapping[str, Any]) -> tuple[flows.Operation, RestoreOptions]:
    """Checks the options. Raises CkptError (bad_input)."""
    options = RestoreOptions.from_params(params)
    operation = flows.open_operation(kind, params)
    _require_go_together(operation, options)
    return operation, options


def _require_go_together(operation: flows.Operation, options: RestoreOptions) -> None:
    """The rules of lanes hold for a restore without a lane, too. Raises CkptError (bad_input) that names all it breaks.

    But for the page cache: a lane's store is a tmpfs, the folder here may be anywhere, and what is asked for is proven.
    """
    chosen = {key: getattr(options, key) for key in ("slimming", "resident_pool", "prefetch")}
    problems = lane_problems({**chosen, "build": operation.criu.build})
    if options.prefetch and not operation.spec.prefetch:
        problems.append("prefetch: true needs server.prefetch, the program that brings the weights")
    if problems:
        raise CkptError("bad_input", f"{'; '.join(problems)}. Set what is needed, or leave the option out.")


def run(operation: flows.Operation, options: RestoreOptions) -> None:
    """Restores a checkpoint and proves it. Raises CkptError, and then no process of the server is left."""
    record, runtime = operation.record, operation.runtime
    layout = options.layout
    record.source, record.slimming = layout.source, options.slimming
    runtime.require()
    flows.describe_criu(operation)
    with exclusive("ckpt_restore", record.run_id, layout.folder):
        replacement.heal(layout.folder)
        proof = _load(layout, options.untaken)
        private.make_folder(layout.folder)
        _require_fit(operation, options, proof)
        if not layout.archive:
            images.require_whole(layout.images)
        record.take(digests.require_intact(layout, proof, options.verify))
        _make_way(operation, options.replace_running)
        try:
            _restore(operation, options, RestoreRequest(layout, proof, options.flags))
        except BaseException as failure:
            with suppress(CkptError):
                record.log_tail = record.log_tail or runtime.log_tail()
            if isinstance(failure, CkptError):
                failure.message += _missing_gpus(operation, proof)
            _end_failed(operation, layout, failure)
            raise
        if options.stop_after:
            _end(runtime, layout)
            record.gpu_mem_after = cuda.memory_used_bytes(operation.commands)


def _load(layout: Layout, untaken: Untaken | None) -> Manifest:
    """The checkpoint's manifest. Raises CkptError; where there is none, with the cause for which it was not taken."""
    try:
        return manifest.load(layout)
    except CkptError as error:
        if error.reason != "images_missing" or untaken is None or untaken.reason not in REASONS:
            raise
        raise CkptError(untaken.reason, f"the checkpoint could not be taken: {untaken.cause}") from error


def _end(runtime: Runtime, layout: Layout) -> None:
    """Stops the server; a container that came out of an archive is removed, one that is restored in place is kept."""
    if layout.archive:
        runtime.remove()
    else:
        runtime.stop()


def _end_failed(operation: flows.Operation, layout: Layout, failure: BaseException) -> None:
    """Leaves nothing of a restore that failed, and adds to its failure what could not be ended."""
    try:
        _end(operation.runtime, layout)
        network_lock.remove_stale(operation.commands)
    except CkptError as left:
        if not isinstance(failure, CkptError):
            raise
        failure.message += f" What it left could not be ended: {left.message}"


def _make_way(operation: flows.Operation, replace_running: bool) -> None:
    """The server's place is free. Raises CkptError (server_running, port_taken), and then nothing was touched."""
    if operation.runtime.instance().running:
        if not replace_running:
            raise CkptError(
                "server_running",
                f"the server {operation.spec.name} runs, and a restore would replace it; stop it with ckpt_stop first, "
                "or set replace_running: true.",
            )
        operation.runtime.stop()
    flows.require_port_free(operation)


def _missing_gpus(operation: flows.Operation, proof: Manifest) -> str:
    """For a restore that failed: what it may have to do with GPUs that are not there. Empty if they are."""
    present = sorted(cuda.gpu_uuids(operation.commands)) if proof.gpus else []
    device_map = operation.criu.effective_switches().get(DEVICE_MAP, "")
    missing = cuda.missing_gpus(proof.gpus, present, device_map)
    if not missing:
        return ""
    return (
        f" The checkpoint is of the GPU {', '.join(missing)}, which this node lacks; it has {', '.join(present) or 'none'}. "
        f"Name the one of the same kind that takes its place ({DEVICE_MAP}: OLD=NEW, for every GPU of the server), or take "
        "another checkpoint here."
    )


def _require_fit(operation: flows.Operation, options: RestoreOptions, proof: Manifest) -> None:
    """The checkpoint is of this runtime and this slimming."""
    for what, asked, taken in (
        ("runtime", operation.runtime.name, proof.runtime),
        ("slimming", options.slimming, proof.slimming),
        ("source", options.layout.source, proof.source),
    ):
        if asked != taken:
            raise CkptError(
                "bad_input",
                f"the checkpoint {proof.name} was taken with {what} `{taken}` and cannot be restored with `{asked}`; "
                f"set {what}: {taken}, or take another checkpoint.",
            )


def _restore(operation: flows.Operation, options: RestoreOptions, request: RestoreRequest) -> None:
    record, runtime = operation.record, operation.runtime
    proof = request.manifest
    record.take(ImageSizes(proof.images, proof.images_total), Sizes(gpu=proof.gpu_bytes), Counter(before=proof.counter))
    files = runtime.prepare_restore(request)
    asked = options.page_cache
    record.take(PageCache(asked, None if asked is None else pagecache.prepare(asked, files)))
    record.gpu_mem_before = cuda.memory_used_bytes(operation.commands)
    if options.page_cache is not None:
        operation.client.ready()
    with _companions(operation, options, proof.staged) as fetching, lane_settings(operation.criu):
        moments = [one.begin() for one in fetching]
        job = runtime.restore(request)
        job.limit_option = "server.health_timeout_s"
        moments.append(runtime.unpacked[0] if runtime.unpacked else job.started)
        record.mark("T0", min(moments))
        try:
            cuda_ran = _serve(operation, options, job, proof)
        finally:
            result = job.wait()
        fetched = [one.finish() for one in fetching] if result.rc == 0 else []
    _add_result(operation, request, result)
    record.take(prefetch.together(fetched))
    _prove(operation, options, proof, cuda_ran)


@contextmanager
def _companions(
    operation: flows.Operation, options: RestoreOptions, staged: Sequence[str]
) -> Iterator[list[prefetch.Prefetch]]:
    """What runs next to the restore until the last token; yields the programs that are to bring weights.

    Keep it alive so long: its end would add work that a long-running service does not have. Where there are both, the
    program that prefetches stands by in the pool's place.
    """
    spec, criu, commands, pool = operation.spec, operation.criu, operation.commands, options.resident_pool
    if options.prefetch:
        with prefetch.ready(spec, criu, staged, commands, standby=pool) as fetching:
            yield fetching
    elif pool:
        with resident_pool.running(criu, commands):
            yield []
    else:
        yield []


def _serve(operation: flows.Operation, options: RestoreOptions, job: Job, proof: Manifest) -> bool | None:
    """Until the last token of the canary. Returns whether the CUDA processes run (None: there are none)."""
    record, runtime = operation.record, operation.runtime
    watch_cuda = flows.CudaWatch(operation, job, proof.cuda_nspids)
    try:
        with flows.AliveWatch(runtime, job, _raise_if_failed) as watch:
            record.mark("T3", operation.client.wait_healthy(watch.check))
        if slimming.wakes(operation.client, options.slimming):
            begin = time.monotonic()
            slimming.wake(operation.client, options.slimming)
            record.take(Phases({"wake": (begin, time.monotonic())}))
        completion = flows.send_canary(operation)
        record.take(Phases({"first_token": (completion.requested, completion.first_token)}))
    except _RestoreFailedError:
        return None
    finally:
        cuda_ran = watch_cuda.stop()
        if watch_cuda.running_at is not None:
            record.mark("T2", watch_cuda.running_at)
    return cuda_ran


class _RestoreFailedError(Exception):
    """The restore command failed; its log tells why."""


def _raise_if_failed(job: Job) -> None:
    if job.wait().rc != 0:
        raise _RestoreFailedError


def _add_result(operation: flows.Operation, request: RestoreRequest, result: Result) -> None:
    """What the command and CRIU left behind. Raises CkptError if the restore failed."""
    record, runtime = operation.record, operation.runtime
    record.mark("T1", result.ended)
    evidence = runtime.evidence("restore", request.layout)
    record.take(flows.read_run(runtime, evidence, result, criu_log.RESTORE_PHASES))
    record.take(Checks(exit_zero=result.rc == 0))
    if result.rc != 0:
        raise flows.explain(evidence, result.stderr, "criu_failed", f"the restore of {request.manifest.name} failed")
    failures = criu_log.silent_failures(evidence.log, request.manifest.plain_processes)
    # without a log there is no proof that no hook failed
    record.take(Checks(no_error_line=bool(evidence.log) and not failures))
    record.log_tail = failures
    operation.log_lines += failures


def _prove(operation: flows.Operation, options: RestoreOptions, proof: Manifest, cuda_ran: bool | None) -> None:
    """The truth gate: every check that applies, and the first that fails becomes the failure."""
    record = operation.record
    alive = {task.identity for task in operation.runtime.tasks()}
    record.take(
        Checks(
            pids_alive=proof.identities <= alive,
            cuda_running=cuda_ran,
            image_bytes=None if proof.gpu_bytes is None else record.images.total >= proof.gpu_bytes,
        )
    )
    unanswered = _compare_counter(operation, proof)
    same = flows.same_answer(proof.canary_tokens, record.canary_tokens)
    record.take(Checks(canary_equal=same))
    if options.memory_digest and proof.memory_digest is not None and same:
        record.take(Checks(memory_equal=operation.client.memory_digest() == proof.memory_digest))
    record.judge()
    if failure := record.failure or unanswered:
        raise failure


def _compare_counter(operation: flows.Operation, proof: Manifest) -> CkptError | None:
    """Whether the request counter in the server's memory went on. Returns what kept it from being read."""
    if proof.counter is None:
        return None
    record, spec = operation.record, operation.spec
    expected = proof.counter + proof.counter_step
    try:
        after = operation.client.counter_reaches(expected)
    except CkptError as error:
        return error
    if after is None:
        return CkptError(
            "server_unhealthy",
            f"{spec.counter_path} told {spec.counter_metric} before the checkpoint, and does not after the restore; "
            "see the server's log lines.",
        )
    record.take(Counter(after=after), Checks(counter_survived=after == expected))
    return None
