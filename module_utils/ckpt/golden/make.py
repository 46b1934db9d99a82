# SPDX-License-Identifier: GPL-3.0-or-later
"""Making a golden checkpoint: start, warm-up, checkpoint, a trial restore that passes the truth gate, then the commit."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from ..measure import checkpoint, probe
from . import commit, identity
from .commit import Golden
from .start import common, discard, new_instance, restore_golden, start_cold
from .wanted import Wanted


def make(wanted: Wanted) -> Golden:
    """Starts the server, warms it up, and makes its golden checkpoint. The server is stopped afterwards.

    The one that is there stays until the new one has proved itself. Raises CkptError.
    """
    began = time.monotonic()
    instance, now = new_instance(wanted), identity.of(wanted)
    try:
        cold = start_cold(wanted, instance)
        asked = {"requests": wanted.warmup_requests, "concurrency": 1, "max_tokens": None, "timeout_s": None}
        operation, options = probe.begin("probe", {**common(wanted, instance), **asked, "bill": None})
        probe.run(operation, options)
    except BaseException:
        discard(wanted, instance)
        raise
    return make_of(wanted, instance, now, cold["t"]["T4"], began)


def make_of(
    wanted: Wanted,
    instance: str,
    started_under: identity.Identity,
    cold_s: float | None = None,
    began: float | None = None,
) -> Golden:
    """Makes the golden checkpoint of a server that runs and has served. The server is stopped afterwards.

    :param started_under: the identity when it was started; a program that was exchanged since is not in its memory
    :param cold_s: what its start took until the first token
    :param began: when making began (monotonic); now for a server that was there anyway
    :raises CkptError: the server is then gone, and an older golden checkpoint is as it was
    """
    began = time.monotonic() if began is None else began
    folder = commit.folder_for(wanted, instance)
    try:
        _checkpoint(wanted, instance, folder)
        record = restore_golden(wanted, instance, folder, trial=True)
    except BaseException:
        discard(wanted, instance)
        commit.remove_one(folder)
        raise
    replaced = commit.noted(wanted)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    first_token_s, size = record["t"]["T4"], record["bytes"]["images_total"]
    made_s = round(time.monotonic() - began, 3)
    golden = Golden(wanted.name, instance, folder, started_under, made, first_token_s, size, cold_s, made_s)
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


def _checkpoint(wanted: Wanted, instance: str, folder: str) -> None:
    operation, options = checkpoint.begin(
        "checkpoint",
        {
            **common(wanted, instance),
            "checkpoint": {"dir": folder, "source": wanted.source, "name": wanted.name},
            "slimming": wanted.slimming,
            "leave_running": False,
            "tcp_established": False,
            "digests": wanted.verify,
            "flags": [],
        },
    )
    checkpoint.run(operation, options)
