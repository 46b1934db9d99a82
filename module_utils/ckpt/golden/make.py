# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a golden checkpoint: start, warm-up, checkpoint, a trial restore that passes the truth gate, then the commit."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..criu.choice import parse_criu
from ..errors import CkptError
from ..measure import checkpoint, probe, restore, start
from ..runtimes import make_runtime
from ..runtimes.base import Runtime
from ..safety.locks import exclusive
from ..server.spec import parse_server
from ..system.commands import Commands
from . import commit, identity
from .commit import Golden
from .wanted import Wanted

Record = dict[str, Any]


@dataclass(frozen=True)
class State:
    """What there is of a server's golden checkpoint on this node, and in words why it cannot be used; empty if it can."""

    golden: Golden | None
    now: identity.Identity
    misfits: list[str]


def examine(wanted: Wanted) -> State:
    """Compares what was committed with this node as it is now."""
    now = identity.of(wanted)
    try:
        golden = commit.load(wanted)
    except CkptError as error:
        return State(None, now, [error.message])
    if golden is None:
        return State(None, now, ["there is no golden checkpoint yet"])
    return State(golden, now, identity.differences(golden.identity, now))


def make(wanted: Wanted) -> Golden:
    """Starts the server, warms it up, and makes its golden checkpoint. The server is stopped afterwards.

    The one that is there stays until the new one has proved itself. Raises CkptError.
    """
    instance, now = new_instance(wanted), identity.of(wanted)
    try:
        start_cold(wanted, instance)
        asked = {"requests": wanted.warmup_requests, "concurrency": 1, "max_tokens": None, "timeout_s": None}
        operation, options = probe.begin("probe", {**_common(wanted, instance), **asked, "bill": None})
        probe.run(operation, options)
    except BaseException:
        discard(wanted, instance)
        raise
    return make_of(wanted, instance, now)


def make_of(wanted: Wanted, instance: str, started_under: identity.Identity) -> Golden:
    """Makes the golden checkpoint of a server that runs and has served. The server is stopped afterwards.

    :param started_under: the identity when it was started; a program that was exchanged since is not in its memory
    :raises CkptError: the server is then gone, and an older golden checkpoint is as it was
    """
    folder = commit.folder_for(wanted, instance)
    try:
        _checkpoint(wanted, instance, folder)
        record = restore_golden(wanted, instance, folder, stop_after=True)
    except BaseException:
        discard(wanted, instance)
        commit.remove_one(folder)
        raise
    replaced = commit.noted(wanted)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    first_token_s, size = record["t"]["T4"], record["bytes"]["images_total"]
    golden = Golden(wanted.name, instance, folder, started_under, made, first_token_s, size)
    commit.save(wanted, golden)
    if replaced is not None:
        discard(wanted, replaced.instance)
    return golden


def forget(wanted: Wanted) -> bool:
    """Removes the golden checkpoint of a server, and the server that was restored from it. Returns whether there was one."""
    golden = commit.noted(wanted)
    if golden is not None:
        discard(wanted, golden.instance)
    return commit.forget(wanted)


def restore_golden(wanted: Wanted, instance: str, folder: str, stop_after: bool = False) -> Record:
    """Restores a checkpoint through the truth gate. Returns the record. Raises CkptError, and then nothing of it runs."""
    operation, options = restore.begin(
        "restore",
        {
            **_common(wanted, instance),
            "checkpoint": {"dir": folder, "source": "disk"},
            "flags": wanted.flags,
            "slimming": wanted.slimming,
            "verify": wanted.verify,
            # both read all memory: part of the proof, and not of a start that somebody waits for
            "memory_digest": stop_after,
            "page_cache": "warm" if stop_after else None,
            "resident_pool": False,
            "prefetch": wanted.prefetch,
            "replace_running": False,
            "stop_after": stop_after,
        },
    )
    restore.run(operation, options)
    return operation.record.as_dict([])


def start_cold(wanted: Wanted, instance: str) -> Record:
    """Starts the server from nothing. Returns the record. Raises CkptError, and then nothing of it runs."""
    operation, options = start.begin("cold", {**_common(wanted, instance), "stop_after": False})
    start.run(operation, options)
    return operation.record.as_dict([])


def new_instance(wanted: Wanted) -> str:
    """A name for one start of the server. A container that is restored in place needs its own as long as its checkpoint.

    It does not begin with the server's name, as those of a benchmark do: what a benchmark left behind is stopped by that.
    """
    return f"gpuckpt-golden-{wanted.name}-{identity.digest([wanted.name, datetime.now(UTC).isoformat()])[:8]}"


def runtime_of(wanted: Wanted, instance: str) -> Runtime:
    """What holds the processes of one start of the server."""
    spec = parse_server(_named(wanted, instance), wanted.runtime)
    return make_runtime(wanted.runtime, spec, parse_criu(wanted.criu), Commands())


def discard(wanted: Wanted, instance: str) -> None:
    """Removes what there is of one start of the server."""
    with exclusive("discard"):
        runtime_of(wanted, instance).remove()


def _checkpoint(wanted: Wanted, instance: str, folder: str) -> None:
    operation, options = checkpoint.begin(
        "checkpoint",
        {
            **_common(wanted, instance),
            "checkpoint": {"dir": folder, "source": "disk", "name": wanted.name},
            "slimming": wanted.slimming,
            "leave_running": False,
            "tcp_established": False,
            "digests": wanted.verify,
            "flags": [],
        },
    )
    checkpoint.run(operation, options)


def _common(wanted: Wanted, instance: str) -> dict[str, Any]:
    return {"runtime": wanted.runtime, "server": _named(wanted, instance), "criu": wanted.criu, "record": None}


def _named(wanted: Wanted, instance: str) -> dict[str, Any]:
    return {**wanted.server, "name": instance}
