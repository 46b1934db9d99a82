# SPDX-License-Identifier: GPL-3.0-or-later
"""CUDA state of processes and GPU memory; everything is empty or None on a node without a GPU."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable

from ..node import smi
from ..system.commands import Commands
from . import library
from .library import CUDA_SUCCESS

STATES = ("running", "locked", "checkpointed", "failed")
RUNNING = "running"
FAILED = "failed"
SMI_TIMEOUT_S = 30.0
DRIVER_LIMIT_S = 30.0


class Driver:
    """The driver's checkpoint interface (560 or newer), or the cuda-checkpoint command where it lacks it."""

    def __init__(self, commands: Commands, cuda_checkpoint: str) -> None:
        self._commands = commands
        self._command = cuda_checkpoint
        self._library = _open_library()

    def states(self, pids: Iterable[int]) -> dict[int, str]:
        """State (one of STATES) of those of the processes that hold CUDA state."""
        found = {}
        for pid in pids:
            state = self._state(pid)
            if state is not None:
                found[pid] = state
        return found

    def _state(self, pid: int) -> str | None:
        if self._library is None:
            return self._ask_command(pid)
        value, answers = ctypes.c_int(-1), list[int]()
        ask = self._library.cuCheckpointProcessGetState
        asking = threading.Thread(
            target=lambda: answers.append(ask(ctypes.c_int(pid), ctypes.byref(value))), daemon=True
        )
        asking.start()
        asking.join(DRIVER_LIMIT_S)
        if not answers:
            # the driver hangs, and so does whoever asks it
            return FAILED
        if answers[0] != CUDA_SUCCESS:
            return None
        return STATES[value.value] if 0 <= value.value < len(STATES) else FAILED

    def _ask_command(self, pid: int) -> str | None:
        if not os.path.exists(self._command):
            return None
        result = self._commands.run([self._command, "--get-state", "--pid", str(pid)], SMI_TIMEOUT_S)
        word = result.stdout.strip().lower()
        return word if result.rc == 0 and word in STATES else None


def _open_library() -> ctypes.CDLL | None:
    try:
        loaded = library.load()
        loaded.cuCheckpointProcessGetState  # noqa: B018  (raises where the driver is older)
    except (OSError, AttributeError):
        return None
    return loaded


def memory_used_bytes(commands: Commands) -> int | None:
    """GPU memory in use on all GPUs of the node; None without a GPU."""
    rows = query(commands, "--query-gpu=memory.used")
    return _sum(row[0] for row in rows)


def process_bytes(commands: Commands, pids: Iterable[int]) -> int | None:
    """GPU memory held by the processes; None without a GPU, or where the driver does not tell."""
    wanted = {str(pid) for pid in pids}
    rows = query(commands, "--query-compute-apps=pid,used_memory")
    return _sum(row[1] for row in rows if len(row) == 2 and row[0] in wanted)


def gpu_uuids(commands: Commands) -> set[str]:
    """The GPUs of the node, by uuid; none without a driver."""
    return {row[0] for row in query(commands, "--query-gpu=uuid") if row}


def missing_gpus(needed: Iterable[str], present: Iterable[str], device_map: str) -> list[str]:
    """GPUs of a checkpoint that a restore finds no place for, by uuid.

    :param device_map: `OLD=NEW,…` as CRIU_CUDA_DEVICE_MAP has it, with `GPU-` before a uuid or without; empty for none
    """
    there = {_bare(uuid) for uuid in present}
    pairs = [pair.partition("=") for pair in device_map.split(",") if pair.strip()]
    places = {_bare(old): _bare(new) for old, _, new in pairs}
    return [uuid for uuid in needed if places.get(_bare(uuid), _bare(uuid)) not in there]


def _bare(uuid: str) -> str:
    return uuid.strip().lower().removeprefix("gpu-")


def process_gpus(commands: Commands, pids: Iterable[int]) -> dict[int, set[str]]:
    """The GPUs, by uuid, that each of the processes uses; those that use none, and a node without a GPU, are left out."""
    found: dict[int, set[str]] = {}
    wanted = {str(pid): pid for pid in pids}
    for row in query(commands, "--query-compute-apps=pid,gpu_uuid"):
        if len(row) == 2 and row[0] in wanted:
            found.setdefault(wanted[row[0]], set()).add(row[1])
    return found


def _sum(cells: Iterable[str]) -> int | None:
    sizes = [size for cell in cells if (size := smi.whole_number(cell, smi.MIB)) is not None]
    return sum(sizes) if sizes else None


def query(commands: Commands, what: str) -> list[list[str]]:
    """The rows that nvidia-smi answers to a --query option; none without a GPU."""
    if not os.path.exists("/dev/nvidiactl"):
        return []
    result = commands.run(smi.query(what), SMI_TIMEOUT_S)
    if result.rc != 0:
        return []
    return smi.parse_rows(result.stdout)
