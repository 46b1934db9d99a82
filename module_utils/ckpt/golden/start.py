# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing a server up, from its golden checkpoint or from nothing, and ending it: all that a client waits for is here.

What makes checkpoints is in `make`. A client that waits for a restore does not wait for that to be imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..criu.choice import parse_criu
from ..errors import CkptError
from ..measure import restore, start
from ..runtimes import make_runtime
from ..runtimes.base import Runtime
from ..safety.locks import exclusive
from ..server.spec import parse_server
from ..server.unique import make_unique
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


def restore_golden(wanted: Wanted, instance: str, folder: str, trial: bool = False) -> Record:
    """Restores a checkpoint through the truth gate, and makes the server unique. Returns the record of the restore.

    :param trial: the server is stopped afterwards
    :raises CkptError: nothing of it runs
    """
    operation, options = restore.begin(
        "restore",
        {
            **common(wanted, instance),
            "checkpoint": {"dir": folder, "source": wanted.source},
            "flags": wanted.flags,
            "slimming": wanted.slimming,
            "verify": wanted.verify,
            # both read all memory: part of the proof, and not of a start that somebody waits for
            "memory_digest": trial,
            "page_cache": "warm" if trial else None,
            "prefetch": wanted.prefetch,
            "replace_running": False,
            "stop_after": False,
        },
    )
    restore.run(operation, options)
    try:
        make_unique(operation.client)
    except BaseException:
        stop(wanted, instance)
        raise
    if trial:
        stop(wanted, instance)
    return operation.record.as_dict([])


def start_cold(wanted: Wanted, instance: str) -> Record:
    """Starts the server from nothing. Returns the record. Raises CkptError, and then nothing of it runs."""
    operation, options = start.begin("cold", {**common(wanted, instance), "stop_after": False})
    start.run(operation, options)
    return operation.record.as_dict([])


def new_instance(wanted: Wanted) -> str:
    """A name for one start of the server. A container that is restored in place needs its own as long as its checkpoint.

    It does not begin with the server's name, as those of a benchmark do: what a benchmark left behind is stopped by that.
    """
    return f"gpuckpt-golden-{wanted.name}-{identity.digest([wanted.name, datetime.now(UTC).isoformat()])[:8]}"


def runtime_of(wanted: Wanted, instance: str) -> Runtime:
    """What holds the processes of one start of the server."""
    spec = parse_server(named(wanted, instance), wanted.runtime)
    return make_runtime(wanted.runtime, spec, parse_criu(wanted.criu), Commands())


def stop(wanted: Wanted, instance: str) -> None:
    """Ends one start of the server; the container that a checkpoint is restored into stays."""
    with exclusive("stop"):
        runtime_of(wanted, instance).stop()


def discard(wanted: Wanted, instance: str) -> None:
    """Removes what there is of one start of the server."""
    with exclusive("discard"):
        runtime_of(wanted, instance).remove()


def common(wanted: Wanted, instance: str) -> dict[str, Any]:
    """Options that the flows share."""
    return {"runtime": wanted.runtime, "server": named(wanted, instance), "criu": wanted.criu, "record": None}


def named(wanted: Wanted, instance: str) -> dict[str, Any]:
    """The server's description, under the name of one start of it."""
    return {**wanted.server, "name": instance}
