# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of the CUDA driver's interface that staged weights need, every call checked.

The driver and not the runtime: it knows memory that can be handed to another process, and needs no PyTorch. The program
that prefetches weights (prefetch.py), the engine that takes them (backend.py) and ranks that read each other's memory
(peers.py) share this and nothing else. Names and numbers are those of cuda.h; sizes are bytes.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Any

LIBRARY = "GPUCKPT_LIBCUDA"  # environment: path of libcuda, where the loader does not find it

STACK_SIZE = 0  # CU_LIMIT_STACK_SIZE
POSIX_FILE_DESCRIPTOR = 1  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
PINNED = 1  # CU_MEM_ALLOCATION_TYPE_PINNED
DEVICE = 1  # CU_MEM_LOCATION_TYPE_DEVICE
READ_WRITE = 3  # CU_MEM_ACCESS_FLAGS_PROT_READWRITE


class CudaError(RuntimeError):
    """A call that the driver refused."""


class Location(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int)]


class AllocationProperties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", Location),
        ("win32", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    ]


class AccessDescription(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = [("location", Location), ("flags", ctypes.c_int)]


class Driver:
    """libcuda. Every method raises CudaError when the driver refuses; a context must be current on the calling thread."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ.get(LIBRARY) or "libcuda.so.1")

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            word = ctypes.c_char_p()
            self._library.cuGetErrorName(status, ctypes.byref(word))
            raise CudaError(f"{name} failed: {(word.value or b'unknown').decode()} ({status})")

    # --- devices and contexts ---

    def init(self) -> None:
        """Initialises the driver: 0.1 s if nobody else has."""
        self._call("cuInit", 0)

    def uuid(self, device: int) -> str:
        """The UUID of a GPU, as 32 hexadecimal digits."""
        value = (ctypes.c_ubyte * 16)()
        self._call("cuDeviceGetUuid_v2", value, device)
        return bytes(value).hex()

    def device_count(self) -> int:
        """How many GPUs this process sees."""
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def retain_context(self, device: int) -> int:
        """The primary context of a GPU, made if need be and current on this thread."""
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.use_context(context.value or 0)
        return context.value or 0

    def current_context(self) -> int:
        """The context of this thread."""
        context = ctypes.c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        return context.value or 0

    def current_device(self) -> int:
        """The GPU of this thread's context."""
        device = ctypes.c_int()
        self._call("cuCtxGetDevice", ctypes.byref(device))
        return device.value

    def use_context(self, context: int) -> None:
        """Makes a context current on this thread."""
        self._call("cuCtxSetCurrent", ctypes.c_void_p(context))

    def limit(self, which: int) -> int:
        """A limit of the current context, in bytes."""
        value = ctypes.c_size_t()
        self._call("cuCtxGetLimit", ctypes.byref(value), which)
        return value.value

    def set_limit(self, which: int, value: int) -> None:
        """Sets a limit of the current context; at once, after what runs on the GPU has ended."""
        self._call("cuCtxSetLimit", which, ctypes.c_size_t(value))

    # --- copies ---

    def pin(self, address: int, size: int) -> None:
        """Pins host memory for the bus."""
        self._call("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(size), 0)

    def unpin(self, address: int) -> None:
        """Undoes `pin`."""
        self._call("cuMemHostUnregister", ctypes.c_void_p(address))

    def make_stream(self) -> int:
        """A stream of the current context."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), 1)  # CU_STREAM_NON_BLOCKING
        return stream.value or 0

    def wait(self, stream: int) -> None:
        """Until all work on a stream is done."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def copy_to_device(self, to: int, source: int, size: int, stream: int | None = None) -> None:
        """Copies from the host; with a stream, only begin to."""
        words = [ctypes.c_uint64(to), ctypes.c_void_p(source), ctypes.c_size_t(size)]
        if stream is None:
            self._call("cuMemcpyHtoD_v2", *words)
        else:
            self._call("cuMemcpyHtoDAsync_v2", *words, ctypes.c_void_p(stream))

    def begin_copy_to_host(self, to: int, source: int, size: int, stream: int) -> None:
        """Begins a copy from the GPU."""
        words = [ctypes.c_void_p(to), ctypes.c_uint64(source), ctypes.c_size_t(size), ctypes.c_void_p(stream)]
        self._call("cuMemcpyDtoHAsync_v2", *words)

    # --- physical memory, and where it is mapped ---

    @staticmethod
    def _properties(device: int) -> AllocationProperties:
        return AllocationProperties(type=PINNED, handle_types=POSIX_FILE_DESCRIPTOR, location=Location(DEVICE, device))

    def granularity(self, device: int) -> int:
        """What sizes and addresses of `create` and `map` are multiples of, in bytes."""
        size = ctypes.c_size_t()
        properties = self._properties(device)
        minimum = 0  # CU_MEM_ALLOC_GRANULARITY_MINIMUM
        self._call("cuMemGetAllocationGranularity", ctypes.byref(size), ctypes.byref(properties), minimum)
        return size.value

    def create(self, size: int, device: int) -> int:
        """Physical memory of a GPU that can be handed to another process; a handle."""
        properties = self._properties(device)
        handle = ctypes.c_uint64()
        self._call(
            "cuMemCreate",
            ctypes.byref(handle),
            ctypes.c_size_t(size),
            ctypes.byref(properties),
            ctypes.c_uint64(0),
        )
        return handle.value

    def reserve(self, size: int) -> int:
        """A range of device addresses with nothing behind it."""
        pointer = ctypes.c_uint64()
        zero = ctypes.c_size_t(0), ctypes.c_uint64(0), ctypes.c_uint64(0)
        self._call("cuMemAddressReserve", ctypes.byref(pointer), ctypes.c_size_t(size), *zero)
        return pointer.value

    def map(self, pointer: int, size: int, handle: int, device: int) -> None:
        """Puts physical memory behind reserved addresses, for reading and writing."""
        address, length = ctypes.c_uint64(pointer), ctypes.c_size_t(size)
        self._call("cuMemMap", address, length, ctypes.c_size_t(0), ctypes.c_uint64(handle), ctypes.c_uint64(0))
        access = AccessDescription(Location(DEVICE, device), READ_WRITE)
        self._call("cuMemSetAccess", address, length, ctypes.byref(access), ctypes.c_size_t(1))

    def unmap(self, pointer: int, size: int) -> None:
        """Takes what is behind reserved addresses away; they stay reserved."""
        self._call("cuMemUnmap", ctypes.c_uint64(pointer), ctypes.c_size_t(size))

    def release(self, handle: int) -> None:
        """Lets go of physical memory: it is given back when no process holds or maps it any more."""
        self._call("cuMemRelease", ctypes.c_uint64(handle))

    def zero(self, pointer: int, size: int) -> None:
        """Fills device memory with zeros; returns when it is done."""
        self._call("cuMemsetD8_v2", ctypes.c_uint64(pointer), ctypes.c_ubyte(0), ctypes.c_size_t(size))
        self._call("cuCtxSynchronize")

    def export(self, handle: int) -> int:
        """A file descriptor for physical memory that another process can take."""
        descriptor = ctypes.c_int(-1)
        self._call(
            "cuMemExportToShareableHandle",
            ctypes.byref(descriptor),
            ctypes.c_uint64(handle),
            POSIX_FILE_DESCRIPTOR,
            ctypes.c_uint64(0),
        )
        return descriptor.value

    def take(self, descriptor: int) -> int:
        """A handle for physical memory that another process exported. The descriptor stays the caller's to close."""
        handle = ctypes.c_uint64()
        self._call(
            "cuMemImportFromShareableHandle",
            ctypes.byref(handle),
            ctypes.c_void_p(descriptor),
            POSIX_FILE_DESCRIPTOR,
        )
        return handle.value


@cache
def driver() -> Driver:
    """The one of this process. Raises OSError when libcuda is not to be found."""
    return Driver()
