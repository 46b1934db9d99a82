# SPDX-License-Identifier: GPL-3.0-or-later
"""GPU memory to a file and back at the speed of the bus.

The bus is fast only from pinned memory, and to pin the file's own pages and let them go takes longer than to copy them. So
threads read the file piece by piece into a few small pinned buffers: while one buffer is on the bus, its thread fills the
other. Measured on an H200: reports/published/h200-native/staged-weights.txt.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from vllm.distributed.device_communicators.cuda_wrapper import CudaRTLibrary

PIECE = 4 << 20  # bytes; 8 MiB take longer to pin and copy no faster, less was not tried
THREADS = 8  # four fill the buffers at 32 GiB/s (H200 node), eight at 48, which is what the bus takes
BUFFERS_PER_THREAD = 2
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # enum cudaMemcpyKind


@dataclass(frozen=True)
class Piece:
    """`size` bytes that lie at `pointer` on the device and at `offset` in the file."""

    pointer: int
    offset: int
    size: int


@dataclass(frozen=True)
class Buffer:
    """Pinned memory of PIECE bytes, and the stream on which it travels."""

    memory: memoryview
    address: int
    stream: Any


class StagedWeights:
    """The weights' bytes in a file: which device pointer lies at which offset. Survives a checkpoint as plain data."""

    def __init__(self, path: Path, sizes: Iterable[tuple[int, int]]) -> None:
        """Lay `sizes`, pairs of device pointer and bytes, out one after another in the file `path`."""
        self.path = path
        self.pieces: list[Piece] = []
        self.total = 0
        for pointer, size in sizes:
            for done in range(0, size, PIECE):
                self.pieces.append(Piece(pointer + done, self.total + done, min(PIECE, size - done)))
            self.total += size

    def write(self) -> None:
        """Fill the file from the GPU.

        Raises:
            OSError: when the file cannot hold it.
            RuntimeError: when the GPU cannot be read.
        """
        with self.path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, self.total)

            def write_piece(piece: Piece, buffer: Buffer) -> None:
                copy_async(buffer.address, piece.pointer, piece.size, DEVICE_TO_HOST, buffer.stream)
                buffer.stream.synchronize()
                self._expect(os.pwrite(stream.fileno(), buffer.memory[: piece.size], piece.offset), piece)

            transfer(self.pieces, write_piece)

    def read(self) -> None:
        """Copy everything back to the GPU.

        Raises:
            RuntimeError: when the file is not what was written, or memory cannot be pinned or copied.
        """
        if not self.path.is_file() or self.path.stat().st_size != self.total:
            raise RuntimeError(
                f"the staged weights {self.path} ({self.total} bytes) are gone or changed; they belong to the checkpoint: "
                "put the file back, or start the server anew"
            )
        with self.path.open("rb") as stream:

            def read_piece(piece: Piece, buffer: Buffer) -> None:
                self._expect(os.preadv(stream.fileno(), [buffer.memory[: piece.size]], piece.offset), piece)
                copy_async(piece.pointer, buffer.address, piece.size, HOST_TO_DEVICE, buffer.stream)

            transfer(self.pieces, read_piece)

    def _expect(self, count: int, piece: Piece) -> None:
        if count != piece.size:
            raise RuntimeError(f"{self.path}: {count} bytes instead of {piece.size} at offset {piece.offset}")


def transfer(pieces: Iterable[Piece], move: Callable[[Piece, Buffer], None]) -> None:
    """Hand every piece to `move` on one of several threads, with a buffer that is off the bus; return when all have arrived."""
    waiting: SimpleQueue[Piece] = SimpleQueue()
    for piece in pieces:
        waiting.put(piece)
    device = torch.cuda.current_device()

    def work(own: list[Buffer]) -> None:
        torch.cuda.set_device(device)
        for buffer in cycle(own):
            try:
                piece = waiting.get_nowait()
            except Empty:
                return
            buffer.stream.synchronize()
            move(piece, buffer)

    with pinned_buffers() as buffers, ThreadPoolExecutor(THREADS) as threads:
        shares = [buffers[first::THREADS] for first in range(THREADS)]
        for _ in threads.map(work, shares):
            pass


@contextmanager
def pinned_buffers() -> Iterator[list[Buffer]]:
    """Buffers for all threads. They last for one transfer: what is pinned during a checkpoint would be in its images."""
    count = THREADS * BUFFERS_PER_THREAD
    with mmap.mmap(-1, count * PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        pages.madvise(mmap.MADV_HUGEPAGE)
        first = ctypes.c_char.from_buffer(pages)
        address = ctypes.addressof(first)
        view = memoryview(pages)
        runtime = torch.cuda.cudart()
        check(runtime.cudaHostRegister(address, len(pages), 0), "pinning buffers for the staged weights")
        buffers = [
            Buffer(view[at : at + PIECE], address + at, torch.cuda.Stream()) for at in range(0, len(pages), PIECE)
        ]
        try:
            yield buffers
        finally:
            for buffer in buffers:
                buffer.stream.synchronize()
                buffer.memory.release()
            check(runtime.cudaHostUnregister(address), "unpinning the buffers of the staged weights")
            # a mapping cannot be closed while something points into it
            view.release()
            del first


def copy_async(to: int, source: int, size: int, kind: int, stream: Any) -> None:
    """Begin a copy of `size` bytes. Raises RuntimeError when the CUDA runtime refuses it."""
    words = [
        ctypes.c_void_p(to),
        ctypes.c_void_p(source),
        ctypes.c_size_t(size),
        kind,
        ctypes.c_void_p(stream.cuda_stream),
    ]
    check(cuda_runtime().cudaMemcpyAsync(*words), "copying the staged weights")


@cache
def cuda_runtime() -> Any:
    """The CUDA runtime as a ctypes library. vLLM looks for it in the list of mappings, which is long: once is enough."""
    return CudaRTLibrary().lib


def check(status: Any, what: str) -> None:
    """Raise RuntimeError unless a call of the CUDA runtime succeeded."""
    if int(status) != 0:
        raise RuntimeError(f"{what} failed: CUDA runtime error {int(status)}")
