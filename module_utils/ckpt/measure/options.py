# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of the measuring modules as their flows see them: with names and types, made once of a module's params.

Options that all of them share (server, runtime, criu, record) become an Operation, see flows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoints.manifest import Layout
from ..errors import CkptError
from ..vocabulary import RESTORE_KEYS

Params = Mapping[str, Any]


@dataclass(frozen=True)
class StartOptions:
    """Options of ckpt_start."""

    stop_after: bool

    @classmethod
    def from_params(cls, params: Params) -> StartOptions:
        """From the module's params, which Ansible has checked."""
        return cls(params["stop_after"])


@dataclass(frozen=True)
class CheckpointOptions:
    """Options of ckpt_checkpoint."""

    layout: Layout
    name: str
    slimming: str
    leave_running: bool
    tcp_established: bool
    digests: str
    flags: tuple[str, ...]

    @classmethod
    def from_params(cls, params: Params) -> CheckpointOptions:
        """From the module's params, which Ansible has checked. A checkpoint without a name has that of its folder."""
        layout = _layout(params["checkpoint"])
        return cls(
            layout=layout,
            name=params["checkpoint"].get("name") or os.path.basename(layout.folder.rstrip("/")),
            slimming=params["slimming"],
            leave_running=params["leave_running"],
            tcp_established=params["tcp_established"],
            digests=params["digests"],
            flags=tuple(params["flags"]),
        )


@dataclass(frozen=True)
class Untaken:
    """Why a checkpoint could not be taken, as the module said it that failed."""

    reason: str
    cause: str


@dataclass(frozen=True)
class RestoreOptions:
    """Options of ckpt_restore; `page_cache` is None where it is left as it is, as for a start that somebody waits for."""

    layout: Layout
    untaken: Untaken | None
    verify: str
    memory_digest: bool
    replace_running: bool
    stop_after: bool
    # what a lane says of it: RESTORE_KEYS
    flags: tuple[str, ...] = ()
    slimming: str = "none"
    page_cache: str | None = "warm"
    resident_pool: bool = False
    prefetch: bool = False

    @classmethod
    def from_params(cls, params: Params) -> RestoreOptions:
        """From the module's params, which Ansible has checked. What a lane may say and does not has its default."""
        untaken = params["checkpoint"].get("untaken")
        chosen: dict[str, Any] = {key: params[key] for key in RESTORE_KEYS if key in params}
        chosen["flags"] = tuple(chosen.get("flags", ()))
        return cls(
            layout=_layout(params["checkpoint"]),
            untaken=Untaken(untaken["reason"], untaken["cause"]) if untaken else None,
            verify=params["verify"],
            memory_digest=params["memory_digest"],
            replace_running=params["replace_running"],
            stop_after=params["stop_after"],
            **chosen,
        )


@dataclass(frozen=True)
class Bill:
    """When a load is sent after a start: `at_s` seconds after `up_at_s` on the node's monotonic clock."""

    started: str
    up_at_s: float
    at_s: float


@dataclass(frozen=True)
class ProbeOptions:
    """Options of ckpt_probe; `max_tokens` and `timeout_s` are None where the server's own count."""

    requests: int
    concurrency: int
    max_tokens: int | None
    timeout_s: float | None
    bill: Bill | None

    @classmethod
    def from_params(cls, params: Params) -> ProbeOptions:
        """From the module's params, which Ansible has checked. Raises CkptError (bad_input) for numbers that are too small."""
        counts = ("requests", "concurrency", "max_tokens")
        too_small = [key for key in counts if params[key] is not None and params[key] < 1]
        if too_small:
            raise CkptError("bad_input", f"{' and '.join(too_small)} must be 1 or more.")
        given = params["bill"]
        bill = Bill(given["started"], given["up_at_s"], given["at_s"]) if given else None
        if bill and bill.at_s < 0:
            raise CkptError("bad_input", "bill.at_s must be 0 or more.")
        return cls(params["requests"], params["concurrency"], params["max_tokens"], params["timeout_s"], bill)

    @property
    def is_load(self) -> bool:
        """Whether the requests are more than canaries one after another."""
        return self.concurrency != 1 or self.max_tokens is not None or self.bill is not None


@dataclass(frozen=True)
class FloorOptions:
    """Options of ckpt_floor; `store_path` is None where no store is measured, `limit_s` is for each measurement."""

    gpu: bool
    store_path: str | None
    size_mib: int
    limit_s: float

    @classmethod
    def from_params(cls, params: Params) -> FloorOptions:
        """From the module's params, which Ansible has checked. Raises CkptError (bad_input) if they ask for nothing."""
        if params["size_mib"] < 1 or params["limit_s"] <= 0:
            raise CkptError("bad_input", "size_mib must be 1 or more, and limit_s more than 0.")
        if not params["gpu"] and not params["store_path"]:
            raise CkptError("bad_input", "there is nothing to measure: gpu is false, and no store_path is given.")
        return cls(params["gpu"], params["store_path"], params["size_mib"], params["limit_s"])

    @property
    def size_bytes(self) -> int:
        """How much is copied and read at a time."""
        return self.size_mib << 20


def _layout(checkpoint: Params) -> Layout:
    return Layout(checkpoint["dir"], checkpoint["source"])
