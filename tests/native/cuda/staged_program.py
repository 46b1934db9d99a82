# SPDX-License-Identifier: GPL-3.0-or-later
"""A program on the fake driver, for tests of libgpuckpt_staging.so in itself: Python that calls the driver by ctypes.

Tests run it with the library preloaded and a script of a few lines. It knows the library no more than others do; `ask`
is what the CUDA plugin does from outside.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from pathlib import Path
from typing import Any

MIB = 1 << 20
MAGIC = 0x7467736B
STAGE, BRING_BACK, ASK = 1, 2, 3
REQUEST = struct.Struct("IIII")
ANSWER = struct.Struct("IIIIQQQ256s")

driver = ctypes.CDLL(os.environ["GPUCKPT_LIBCUDA"])


class RefusedError(Exception):
    """A call of the driver, or a request to the library, that was refused; the first argument is why."""


def call(name: str, *arguments: Any) -> None:
    status = getattr(driver, name)(*arguments)
    if status:
        raise RefusedError(status)


def begin(device: int = 0) -> int:
    """Makes the context of a GPU current."""
    context = ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    return context.value or 0


def allocate(size: int) -> int:
    pointer = ctypes.c_uint64()
    call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
    return pointer.value


def free(pointer: int) -> None:
    call("cuMemFree_v2", ctypes.c_uint64(pointer))


def write(pointer: int, data: bytes) -> None:
    call("cuMemcpyHtoD_v2", ctypes.c_uint64(pointer), data, ctypes.c_size_t(len(data)))


def read(pointer: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    call("cuMemcpyDtoH_v2", buffer, ctypes.c_uint64(pointer), ctypes.c_size_t(size))
    return buffer.raw


def add(pointer: int, size: int, number: int) -> None:
    """Launches the fake's kernel, which adds a number to each byte."""
    values = [ctypes.c_uint64(pointer), ctypes.c_size_t(size), ctypes.c_ubyte(number)]
    parameters = (ctypes.c_void_p * 3)(*map(ctypes.addressof, values))
    call("cuLaunchKernel", None, 1, 1, 1, 1, 1, 1, 0, None, parameters, None)


def attribute(which: int, pointer: int) -> int:
    value = ctypes.c_uint64(0)
    call("cuPointerGetAttribute", ctypes.byref(value), which, ctypes.c_uint64(pointer))
    return value.value


def used() -> int:
    """Bytes of physical memory that are in use."""
    free_bytes, total = ctypes.c_size_t(), ctypes.c_size_t()
    call("cuMemGetInfo_v2", ctypes.byref(free_bytes), ctypes.byref(total))
    return total.value - free_bytes.value


def thread_names() -> list[str]:
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


def ask(kind: int, path: str | None = None, limit_ms: int = 2000) -> dict[str, int]:
    """One request to the library. Raises RefusedError with its words."""
    # its helpers have its name
    [number] = {int(name.partition(":")[2]) for name in thread_names() if name.startswith("gpuckpt:")}
    with socket.socket(fileno=os.dup(number)) as connection:
        files = [os.open(path, os.O_RDWR | os.O_CREAT, 0o600)] if path else []
        socket.send_fds(connection, [REQUEST.pack(MAGIC, kind, limit_ms, 7)], files)
        for file in files:
            os.close(file)
        magic, answered, refused, staged, size, zeros, dropped, text = ANSWER.unpack(connection.recv(4096))
    assert (magic, answered) == (MAGIC, 7)
    if refused:
        raise RefusedError(text.split(b"\0")[0].decode())
    return {"staged": staged, "bytes": size, "zeros": zeros, "dropped": dropped}


def why(action: Any, *arguments: Any) -> Any:
    """What an action is refused with, or None."""
    try:
        action(*arguments)
    except RefusedError as refusal:
        return refusal.args[0]
    return None
