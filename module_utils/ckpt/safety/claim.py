# SPDX-License-Identifier: GPL-3.0-or-later
"""Who uses a node: one play at a time starts and stops servers there, and replaces what they need.

A claim is a file on the node that names the play, its run and the process of the controller that plays it. No process on
the node holds it: modules are short, and a connection may break without the play's end. It is void when that process is
gone. The node knows that of its own processes, and the controller of its own. Of a play from elsewhere only its silence
tells.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from ..errors import CkptError
from ..parsing import FormatError, build, parse_json
from ..system.files import read_text
from ..system.procfs import read_task
from . import locks

# Not in /run/gpuckpt, which a rollback removes while it still has the node.
CLAIM_FILE = "/run/gpuckpt.claim"
# it is held for the time that a small file takes to be read and written
CLAIM_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Process:
    """A process, told from every other on any machine. Numbers are used again; `starttime` is in clock ticks since the boot."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    starttime: int

    def is_here(self) -> bool:
        """Whether it would be seen among the processes that this one sees."""
        return bool(self.boot_id) and (self.boot_id, self.pid_namespace) == _machine()

    def lives(self) -> bool | None:
        """Whether it still runs; None where that cannot be known."""
        if not self.is_here():
            return None
        task = read_task(self.pid)
        return task is not None and task.state not in ("Z", "X") and task.starttime == self.starttime


@dataclass(frozen=True)
class Known:
    """What somebody else knows of a process."""

    process: Process | None = None
    lives: bool | None = None


NOTHING = Known()


def identify(pid: int) -> Process:
    """The process of this number, on this machine; without /proc its start is unknown and it `is_here` nowhere."""
    task = read_task(pid)
    return Process(socket.gethostname(), *_machine(), pid, task.starttime if task else 0)


@dataclass(frozen=True)
class Claim:
    """Who has a node.

    `since` is in seconds of the epoch. `signs` is a folder that changes while the play goes on, or None. Without a change
    for `silence_s` the play counts as ended. `node` is what the play's inventory calls this node; empty where that is not
    known.
    """

    by: str
    run_id: str | None
    since: float
    holder: Process
    signs: str | None
    silence_s: int
    node: str = ""

    def silent_s(self) -> float:
        """Seconds, on this node, since the last sign of life."""
        moments = [self.since]
        if self.signs and os.path.isdir(self.signs):
            moments.append(os.stat(self.signs).st_mtime)
        return max(0.0, time.time() - max(moments))

    def as_dict(self) -> dict[str, Any]:
        """For the file, and for results."""
        return asdict(self)

    def __str__(self) -> str:
        run = f" (run {self.run_id})" if self.run_id else ""
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"{self.by}{run} since {since}, process {self.holder.pid} on {self.holder.host}"


class NodeTakenError(CkptError):
    """Another play has the node.

    :param held: its claim.
    :param known: whether it is known to run or not to; if it is not, the controller may know.
    """

    def __init__(self, held: Claim, known: bool, message: str) -> None:
        super().__init__("node_taken", message)
        self.held = held
        self.known = known


def parse_claim(raw: Mapping[str, Any]) -> Claim:
    """A claim as `as_dict` gives it. Raises CkptError (bad_input)."""
    try:
        claim = build(Claim, raw)
        str(claim)
    except (ValueError, OverflowError, OSError) as error:
        raise CkptError("bad_input", f"this is no claim of a node ({error}): {raw!r:.200}.") from None
    return claim


def parse_process(raw: Mapping[str, Any]) -> Process:
    """A process as `asdict` gives it. Raises CkptError (bad_input)."""
    try:
        return build(Process, raw)
    except FormatError as error:
        raise CkptError("bad_input", f"this is no process ({error}): {raw!r:.200}.") from None


def take(
    wanted: Claim, known: Known = NOTHING, insist: bool = False, continued: bool = False, write: bool = True
) -> Claim | None:
    """Claims this node. Returns the claim of a play that did not give it up, None if there was none.

    :param known: what the controller knows of the process that has it.
    :param insist: take the node from a play of which nobody knows whether it goes on.
    :param continued: do so if it is the same run.
    :param write: whether to write the claim, or to see only whether it could be.
    :raises NodeTakenError: another play has it.
    :raises CkptError: (bad_input) the same play has it under another name of its inventory.
    """
    if not write and not os.path.exists(CLAIM_FILE):
        return None
    with _claims() as file:
        held = _read(file)
        former = None if held is None or held.holder == wanted.holder else held
        if held is not None and former is None:
            _refuse_second_name(held, wanted)
        if former is not None:
            _refuse_unless_void(former, wanted, known, insist or (continued and former.run_id == wanted.run_id))
        if write:
            _write(file, json.dumps(wanted.as_dict()))
    return former


def release(holder: Process, node: str = "", write: bool = True) -> None:
    """Gives up the claim that this process has on the node of this name, if it has one; others' are left alone."""
    if not write or not os.path.exists(CLAIM_FILE):
        return
    with _claims() as file:
        held = _read(file)
        if held is None or (held.holder == holder and node in ("", held.node)):
            os.unlink(CLAIM_FILE)


def current() -> Claim | None:
    """The claim of this node, void or not; None if there is none. Raises CkptError (bad_input, timeout)."""
    if not os.path.exists(CLAIM_FILE):
        return None
    with _claims() as file:
        return _read(file)


def guard(run_id: str) -> None:
    """Makes sure that no other play has taken the node from this run, which was silent. Raises CkptError (node_taken)."""
    held = current()
    if held is None or held.run_id == run_id or held.holder.lives() is False or held.silent_s() > held.silence_s:
        return
    raise CkptError("node_taken", f"the node is no longer that of the run {run_id}: it is in use by {held}.")


def _refuse_second_name(held: Claim, wanted: Claim) -> None:
    """Servers of two names would end each other, and one machine would count as two."""
    if held.node and wanted.node and held.node != wanted.node:
        raise CkptError(
            "bad_input",
            f"{wanted.node} and {held.node} are one machine, and this play has it as {held.node}: "
            "leave one of the two names out of the inventory, or of --limit.",
        )


def _refuse_unless_void(held: Claim, wanted: Claim, known: Known, insist: bool) -> None:
    holder = held.holder
    lives = known.lives if known.process == holder else holder.lives()
    if lives is False:
        return
    if lives is None and wanted.holder.boot_id and _same_machine(holder, wanted.holder):
        raise NodeTakenError(held, False, f"{held} has this node, and only the controller knows whether it goes on.")
    if lives:
        raise NodeTakenError(
            held,
            True,
            f"this node is in use: {held}, which runs. Nothing was changed here. Wait until it ends, or end it there (Ctrl-C).",
        )
    if insist or held.silent_s() > held.silence_s:
        return
    fix = f"go on with it (-e gpuckpt_run_id={held.run_id} -e gpuckpt_continue=true), or " if held.run_id else ""
    raise NodeTakenError(
        held,
        True,
        f"this node is in use: {held}; its last sign of life was {held.silent_s():.0f} s ago, and after {held.silence_s} s "
        f"it counts as ended. Nothing was changed here. Wait until it ends; if it was broken off, {fix}take the node from it "
        "with -e gpuckpt_take_over=true.",
    )


def _machine() -> tuple[str, str]:
    """What processes that see each other have in common: the boot and the PID namespace; empty where there is no /proc."""
    try:
        return read_text("/proc/sys/kernel/random/boot_id").strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return "", ""


def _same_machine(one: Process, other: Process) -> bool:
    return (one.boot_id, one.pid_namespace) == (other.boot_id, other.pid_namespace)


@contextmanager
def _claims() -> Iterator[int]:
    """The file of the claim, open and locked; empty where there is no claim."""
    until = time.monotonic() + CLAIM_TIMEOUT_S
    while True:
        file = locks.open_private(CLAIM_FILE)
        try:
            if not locks.take_within(file, until):
                raise CkptError(
                    "timeout",
                    f"somebody has held {CLAIM_FILE} on this node for more than {CLAIM_TIMEOUT_S:g} s; "
                    f"find out who (fuser {CLAIM_FILE}) and end that process.",
                )
            # whoever had it before may have removed it
            if locks.is_at(file, CLAIM_FILE):
                yield file
                return
        finally:
            os.close(file)


def _read(file: int) -> Claim | None:
    text = os.pread(file, 1 << 16, 0).decode("utf-8", "replace")
    if not text.strip():
        return None
    try:
        return parse_claim(parse_json(text))
    except (FormatError, CkptError):
        raise CkptError(
            "bad_input",
            f"{CLAIM_FILE} on this node says who uses it, and cannot be read: see that no play of gpuckpt runs, and remove it.",
        ) from None


def _write(file: int, text: str) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, text.encode() + b"\n", 0)
