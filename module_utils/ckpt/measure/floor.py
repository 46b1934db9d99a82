# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node cannot beat: the cost of a CUDA context, copies to the GPU, and reading the checkpoint store.

Each measurement runs in a child of its own. There the driver starts fresh, a hang can be killed, and the child's end
frees the GPU's memory. Rates are the best of several passes, since a ceiling is asked for; the context cost is a median.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..cuda import library
from ..cuda.library import CUDA_SUCCESS
from ..errors import CkptError
from ..node import inspection
from ..system.commands import Commands
from .options import FloorOptions
from .record import Record
from .results import Figure, Phases

# names in the record; gpuckpt_report.analysis makes the floor line of the first two
CONTEXT_COST, COPY_CEILING = "context", "copy_h2d"
COPY_PAGEABLE = "copy_h2d_pageable"
STORE_READS = {1: "store_read_1", 8: "store_read_8"}

CUDA_ERROR_OUT_OF_MEMORY = 2
CONTEXTS = 3
PINNED_PASSES, PAGEABLE_PASSES, STORE_PASSES = 5, 3, 3
READ_BYTES = 16 << 20
FILL_BYTES = 4 << 20
# the file or the buffer, the memory it is copied into, and slack for everything else on the node
MEMORY_FACTOR = 3
REAP_LIMIT_S = 5.0
PR_SET_PDEATHSIG = 1
ANSWER_BYTES = 64 << 10

Values = dict[str, float]


@dataclass
class Measurement:
    """One call of the module: its record under construction; it runs no commands."""

    record: Record
    commands: Commands = field(default_factory=Commands)
    log_lines: list[str] = field(default_factory=list)


def begin(kind: str, params: Mapping[str, Any]) -> tuple[Measurement, FloorOptions]:
    """Checks the options. Raises CkptError (bad_input)."""
    options = FloorOptions.from_params(params)
    record = Record(kind, params.get("record") or {})
    record.build = record.source = None
    return Measurement(record), options


def run(measurement: Measurement, options: FloorOptions) -> None:
    """Measures what the options ask for. Raises CkptError."""
    record, size, limit_s = measurement.record, options.size_bytes, options.limit_s
    found: dict[str, tuple[float, str]] = {}
    record.mark("T0", time.monotonic())
    _require_memory(size)
    if options.gpu:
        with _Phase(record, "contexts"):
            costs = sorted(_in_child(context_cost, limit_s)[CONTEXT_COST] for _ in range(CONTEXTS))
        found[CONTEXT_COST] = costs[CONTEXTS // 2], "s"
        with _Phase(record, "copies"):
            found |= _rates(_in_child(lambda: copy_rates(size), limit_s))
    store = options.store_path
    if store and _has_room(store, size):
        with _Phase(record, "store"):
            found |= _rates(_in_child(lambda: store_rates(store, size), limit_s))
    if not found:
        raise CkptError("store_full", f"{store} has no room for a file of {options.size_mib} MiB.")
    record.floor = {name: Figure(value, unit) for name, (value, unit) in found.items()}
    record.mark("T1", time.monotonic())


def context_cost() -> Values:
    """Seconds from cuInit to a primary context on the first GPU. For a process that has not used the driver yet."""
    driver = _Driver()
    started = time.monotonic()
    driver.make_context()
    return {CONTEXT_COST: time.monotonic() - started}


def copy_rates(size: int) -> Values:
    """Bytes a second from pinned and from ordinary memory to the first GPU, `size` bytes at once."""
    driver = _Driver()
    driver.use_context(driver.make_context())
    device, stream = driver.allocate(size), driver.make_stream()
    pinned = driver.allocate_pinned(size)
    ctypes.memset(pinned, 1, size)
    rates = {COPY_CEILING: _best_rate(size, PINNED_PASSES, lambda: driver.copy(device, pinned, size, stream))}
    driver.free_pinned(pinned)
    memory, address = _touched_memory(size)
    rates[COPY_PAGEABLE] = _best_rate(size, PAGEABLE_PASSES, lambda: driver.copy(device, address, size, stream))
    del memory
    return rates


def store_rates(folder: str, size: int) -> Values:
    """Bytes a second at which one and several threads read a file of `size` bytes in `folder` into fresh memory."""
    block = os.urandom(min(FILL_BYTES, size))
    # without a name: nothing is left behind, however this process ends
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for offset in range(0, size, len(block)):
            file.write(block[: size - offset])
        return {
            name: max(_read_rate(file.fileno(), size, threads) for _ in range(STORE_PASSES))
            for threads, name in STORE_READS.items()
        }


def _read_rate(descriptor: int, size: int, threads: int) -> float:
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory, memoryview(memory) as view:
        share = -(-size // threads)
        ranges = [(start, min(start + share, size)) for start in range(0, size, share)]
        readers = [threading.Thread(target=_read, args=(descriptor, view, start, end)) for start, end in ranges]
        started = time.monotonic()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return size / (time.monotonic() - started)


def _read(descriptor: int, view: memoryview, start: int, end: int) -> None:
    while start < end:
        with view[start : min(start + READ_BYTES, end)] as part:
            start += os.preadv(descriptor, [part], start)


def _best_rate(size: int, passes: int, copy: Callable[[], None]) -> float:
    copy()  # the first pass sets up what the others find
    best = float("inf")
    for _ in range(passes):
        started = time.monotonic()
        copy()
        best = min(best, time.monotonic() - started)
    return size / best


def _touched_memory(size: int) -> tuple[mmap.mmap, int]:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.memset(address, 1, size)
    return memory, address


def _rates(values: Values) -> dict[str, tuple[float, str]]:
    return {name: (value, "B/s") for name, value in values.items()}


def _require_memory(size: int) -> None:
    """A measurement must not drive the node out of memory."""
    available, wanted = inspection.memory_bytes(inspection.Node())["available"], MEMORY_FACTOR * size
    if available < wanted:
        raise CkptError(
            "bad_input",
            f"the floor takes {wanted >> 20} MiB of memory for a moment, and {available >> 20} MiB are available; "
            "free memory, or do without it (checkpoint_bench_floor=false).",
        )


def _has_room(folder: str, size: int) -> bool:
    """Whether the store can take the file and stays usable. Raises CkptError (bad_input) if there is no store."""
    try:
        state = os.statvfs(folder)
    except OSError as error:
        raise CkptError("bad_input", f"store_path {folder}: {error.strerror}; run provision.yml first.") from None
    return state.f_bavail * state.f_frsize > size


class _Phase:
    """A span of the record."""

    def __init__(self, record: Record, name: str) -> None:
        self._record, self._name = record, name

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._record.take(Phases({self._name: (self._started, time.monotonic())}))


class _Driver:
    """The few calls of the CUDA driver that a floor takes. Each raises CkptError."""

    def __init__(self) -> None:
        try:
            self._library = library.load()
        except OSError as error:
            raise CkptError(
                "cuda_not_running",
                f"{library.path()} cannot be loaded ({error}); install the driver's libraries on this node.",
            ) from None

    def make_context(self) -> ctypes.c_void_p:
        """Starts the driver and retains the primary context of the first GPU."""
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        return context

    def use_context(self, context: ctypes.c_void_p) -> None:
        """Makes it the thread's context."""
        self._call("cuCtxSetCurrent", context)

    def allocate(self, size: int) -> ctypes.c_uint64:
        """GPU memory."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer

    def allocate_pinned(self, size: int) -> int:
        """Host memory that the GPU reads by DMA."""
        pointer = ctypes.c_void_p()
        self._call("cuMemAllocHost_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value or 0

    def free_pinned(self, address: int) -> None:
        """Gives it back."""
        self._call("cuMemFreeHost", ctypes.c_void_p(address))

    def make_stream(self) -> ctypes.c_void_p:
        """A stream of its own."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(0))
        return stream

    def copy(self, device: ctypes.c_uint64, address: int, size: int, stream: ctypes.c_void_p) -> None:
        """Host to GPU, to its end."""
        self._call("cuMemcpyHtoDAsync_v2", device, ctypes.c_void_p(address), ctypes.c_size_t(size), stream)
        self._call("cuStreamSynchronize", stream)

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise CkptError(
                "cuda_not_running", f"{library.NAME} has no {name}; is it the driver's own library?"
            ) from None
        result = function(*arguments)
        if result == CUDA_ERROR_OUT_OF_MEMORY and name == "cuMemAlloc_v2":
            raise CkptError(
                "gpu_memory_short",
                "the GPU has no room for the copy that measures its floor; stop what else holds its memory (nvidia-smi tells).",
            )
        if result != CUDA_SUCCESS:
            raise CkptError(
                "cuda_not_running",
                f"{name} failed with {self._error_name(result)}; `ansible-playbook doctor.yml` tells more of the driver.",
            )

    def _error_name(self, result: int) -> str:
        text = ctypes.c_char_p()
        found = self._library.cuGetErrorName(ctypes.c_int(result), ctypes.byref(text)) == CUDA_SUCCESS
        return text.value.decode() if found and text.value else f"error {result}"


def _in_child(work: Callable[[], Values], limit_s: float) -> Values:
    """What `work` returns in a process of its own. Raises CkptError: its own, or timeout, or that it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _be_child(work, writing)
    os.close(writing)
    try:
        answer = _read_all(reading, time.monotonic() + limit_s)
    finally:
        os.close(reading)
        gone = _end(child)
    if answer is None:
        left = "and was killed" if gone else "and cannot be killed, so the driver holds it"
        raise CkptError(
            "timeout",
            f"measuring the floor did not end within {limit_s:g} s {left}; see dmesg for errors of the driver (Xid).",
        )
    if not answer:
        raise CkptError(
            "internal",
            "the process that measures the floor died without a word; see dmesg for the cause (memory, Xid).",
        )
    document = json.loads(answer)
    if "reason" in document:
        raise CkptError(document["reason"], document["message"])
    return {str(name): float(value) for name, value in document.items()}


def _be_child(work: Callable[[], Values], writing: int) -> NoReturn:
    """Does the work and sends its outcome as JSON; never returns to the module's code."""
    try:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # whoever waits for the end of the module's output must not wait for this process
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        try:
            document: dict[str, Any] = dict(work())
        except CkptError as error:
            document = {"reason": error.reason, "message": error.message}
        except OSError as error:
            document = {"reason": "internal", "message": f"measuring the floor: {error.strerror or error}."}
        os.write(writing, json.dumps(document).encode())
    finally:
        os._exit(0)


def _read_all(descriptor: int, deadline: float) -> bytes | None:
    """Everything up to the end of file; None if that does not come in time."""
    data = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        part = os.read(descriptor, ANSWER_BYTES)
        if not part:
            return data
        data += part


def _end(child: int) -> bool:
    """Kills the child and reaps it. False if it stays, as a process does that hangs within the driver."""
    deadline = time.monotonic() + REAP_LIMIT_S
    # harmless for one that has ended: it is still ours, so its number is nobody else's
    os.kill(child, signal.SIGKILL)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
