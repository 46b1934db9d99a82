# SPDX-License-Identifier: GPL-3.0-or-later
"""A sleep-mode backend for vLLM that makes an engine small for a checkpoint.

vLLM's own backend knows two levels, and both cost a checkpoint dearly: level 1 copies the weights into pinned host memory,
which CRIU restores as shared memory in one stream; level 2 loses them. This backend keeps both as they are and adds:

    level 3   release the KV cache, leave the weights on the GPU: nothing is copied at all
    level 4   write the weights to a file in GPUCKPT_STAGING_DIR and release all; waking registers the file's pages for
              DMA and copies them at the speed of the bus, so neither CRIU nor the driver touches them

Waking brings back whatever is asleep. Written against vLLM 0.25.1.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from vllm.device_allocator import get_mem_allocator_instance
from vllm.device_allocator.cumem import create_and_map, unmap_and_release
from vllm.device_allocator.sleep_mode_backend import CuMemBackend
from vllm.distributed.device_communicators.cuda_wrapper import CudaRTLibrary
from vllm.logger import init_logger

# below vLLM's own name, so that its logging configuration covers it
logger = init_logger("vllm.gpuckpt")

DROP_KV_CACHE = 3
STAGE_WEIGHTS = 4
WEIGHTS = "weights"
KV_CACHE = "kv_cache"
STAGING_DIR = "GPUCKPT_STAGING_DIR"


class StagedWeights:
    """The weights' bytes in a file: which device pointer lies at which offset. Survives a checkpoint as plain data."""

    def __init__(self, path: Path, sizes: Iterable[tuple[int, int]]) -> None:
        """Lay `sizes`, pairs of device pointer and bytes, out one after another in the file `path`."""
        self.path = path
        self.offsets: dict[int, tuple[int, int]] = {}
        self.total = 0
        for pointer, size in sizes:
            self.offsets[pointer] = (self.total, size)
            self.total += size

    def write(self, copy: Callable[[int, int, int], None]) -> None:
        """Fill the file with `copy(host address, device pointer, bytes)`."""
        with self.path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, self.total)
            with mapped(stream, self.total) as base:
                for pointer, (offset, size) in self.offsets.items():
                    copy(base + offset, pointer, size)

    def read(self, copy: Callable[[int, int, int], None]) -> None:
        """Copy everything back with `copy(device pointer, host address, bytes)`, from pages registered for DMA.

        Raises:
            RuntimeError: when the file is not what was written, or its pages cannot be registered.
        """
        if not self.path.is_file() or self.path.stat().st_size != self.total:
            raise RuntimeError(
                f"the staged weights {self.path} ({self.total} bytes) are gone or changed; they belong to the checkpoint: "
                "put the file back, or start the server anew"
            )
        with self.path.open("r+b") as stream, mapped(stream, self.total) as base, registered(base, self.total):
            for pointer, (offset, size) in self.offsets.items():
                copy(pointer, base + offset, size)


@contextmanager
def mapped(stream: BinaryIO, size: int) -> Iterator[int]:
    """Map a file, shared (a private mapping would be copied when it is registered); yield the address."""
    with mmap.mmap(stream.fileno(), size) as pages:
        first = ctypes.c_char.from_buffer(pages)
        try:
            yield ctypes.addressof(first)
        finally:
            # a mapping cannot be closed while something points into it
            del first


@contextmanager
def registered(address: int, size: int) -> Iterator[None]:
    """Pin pages for DMA while the block runs."""
    runtime = torch.cuda.cudart()
    check(runtime.cudaHostRegister(address, size, 0), "registering the staged weights")
    try:
        yield
    finally:
        check(runtime.cudaHostUnregister(address), "unregistering the staged weights")


def check(status: Any, what: str) -> None:
    """Raise RuntimeError unless a call of the CUDA runtime succeeded."""
    if int(status) != 0:
        raise RuntimeError(f"{what} failed: CUDA runtime error {int(status)}")


class CheckpointBackend(CuMemBackend):
    """vLLM's allocator, with the levels that suit a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self._staged: StagedWeights | None = None
        self._copy = CudaRTLibrary().cudaMemcpy

    def suspend(self, level: int = 1) -> None:
        """Release GPU memory; see the module's text for the levels."""
        if level not in (DROP_KV_CACHE, STAGE_WEIGHTS):
            super().suspend(level)
            return
        self._state = "SUSPENDED"
        began = time.monotonic()
        released = 0
        if level == STAGE_WEIGHTS:
            self._stage()
            released += self._release(WEIGHTS)
        released += self._release(KV_CACHE)
        torch.cuda.empty_cache()
        logger.info("gpuckpt: level %d released %d bytes in %.3f s", level, released, time.monotonic() - began)

    def resume(self, tags: list[str] | None = None) -> None:
        """Bring back what is asleep, of the given tags or of all."""
        self._state = "RESUMING"
        began = time.monotonic()
        for pointer, data in self._allocations(tags):
            if data.is_asleep:
                create_and_map(data.handle)
                data.is_asleep = False
                self._copy_back(pointer, data)
        mapped = time.monotonic()
        if self._staged is not None and (tags is None or WEIGHTS in tags):
            self._staged.read(self._copy)
            self._staged = None
        self._state = "RUNNING"
        logger.info(
            "gpuckpt: memory back in %.3f s, staged weights in %.3f s", mapped - began, time.monotonic() - mapped
        )

    def _copy_back(self, pointer: int, data: Any) -> None:
        """Undo level 1 for one allocation."""
        if data.cpu_backup_tensor is not None:
            backup = data.cpu_backup_tensor
            self._copy(pointer, backup.data_ptr(), backup.numel() * backup.element_size())
            data.cpu_backup_tensor = None

    @staticmethod
    def _allocations(tags: list[str] | None) -> list[tuple[int, Any]]:
        known = get_mem_allocator_instance().pointer_to_data  # type: ignore[attr-defined]
        return [(pointer, data) for pointer, data in sorted(known.items()) if tags is None or data.tag in tags]

    def _stage(self) -> None:
        folder = os.environ.get(STAGING_DIR)
        if not folder:
            raise RuntimeError(
                f"{STAGING_DIR} is not set: level {STAGE_WEIGHTS} needs a folder for the weights, on a tmpfs"
            )
        handle, name = tempfile.mkstemp(prefix="weights-", suffix=".bin", dir=folder)
        os.close(handle)
        sizes = [(pointer, data.handle[1]) for pointer, data in self._allocations([WEIGHTS])]
        staged = StagedWeights(Path(name), sizes)
        try:
            staged.write(self._copy)
        except BaseException:
            staged.path.unlink(missing_ok=True)
            raise
        self._staged = staged

    def _release(self, tag: str) -> int:
        """Give the physical memory of the allocations of one tag back; return its bytes."""
        released = 0
        for _, data in self._allocations([tag]):
            if not data.is_asleep:
                unmap_and_release(data.handle)
                data.is_asleep = True
                released += data.handle[1]
        return released
