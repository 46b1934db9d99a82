# SPDX-License-Identifier: GPL-3.0-or-later
"""GPU memory to a file and back at the speed of the bus.

The bus is fast only from pinned memory, and to pin the file's own pages and let them go takes longer than to copy them. So
threads read the file piece by piece into a few small pinned buffers. While one buffer is on the bus, its thread fills the
other. Measured on an H200: reports/published/h200-native/staged-weights.txt.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from queue import Empty, SimpleQueue

from gpuckpt_vllm.driver import driver

PIECE = 4 << 20  # bytes; 8 MiB take longer to pin and copy no faster, less was not tried
THREADS = 8  # four fill the buffers at 32 GiB/s (H200 node), eight at 48, which is what the bus takes
BUFFERS_PER_THREAD = 2


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
    stream: int


@dataclass(frozen=True)
class Layout:
    """What a weights file holds: of which GPU (UUID), and the bytes of each allocation, one after another."""

    gpu: str
    sizes: tuple[int, ...]

    @property
    def total(self) -> int:
        """Bytes of the file."""
        return sum(self.sizes)

    @staticmethod
    def path(weights: Path) -> Path:
        """Where the layout of a weights file is written down."""
        return weights.with_suffix(".json")

    def save(self, weights: Path) -> None:
        """Writes it next to the weights."""
        self.path(weights).write_text(json.dumps({"gpu": self.gpu, "sizes": self.sizes}) + "\n")

    @classmethod
    def load(cls, weights: Path) -> Layout:
        """Reads it. Raises OSError or ValueError when it is missing or damaged."""
        raw = json.loads(cls.path(weights).read_text())
        try:
            return cls(str(raw["gpu"]), tuple(int(size) for size in raw["sizes"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{cls.path(weights)} is no layout of weights: {error!r}") from error


class StagedWeights:
    """The weights' bytes in a file: which device pointer lies at which offset. Survives a checkpoint as plain data."""

    def __init__(self, path: Path, layout: Layout, pointers: Sequence[int]) -> None:
        """Lays the allocations of `layout`, which lie at `pointers` on the device, out in the file `path`."""
        self.path = path
        self.layout = layout
        self.pieces: list[Piece] = []
        offset = 0
        for pointer, size in zip(pointers, layout.sizes, strict=True):
            for done in range(0, size, PIECE):
                self.pieces.append(Piece(pointer + done, offset + done, min(PIECE, size - done)))
            offset += size

    def write(self) -> None:
        """Fills the file from the GPU.

        :raises OSError: when the file cannot hold it
        :raises RuntimeError: when the GPU cannot be read
        """
        with self.path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, self.layout.total)

            def write_piece(piece: Piece, buffer: Buffer) -> None:
                driver().begin_copy_to_host(buffer.address, piece.pointer, piece.size, buffer.stream)
                driver().wait(buffer.stream)
                self._expect(os.pwrite(stream.fileno(), buffer.memory[: piece.size], piece.offset), piece)

            transfer(self.pieces, write_piece)
        self.layout.save(self.path)

    def read(self) -> None:
        """Copies everything back to the GPU.

        :raises RuntimeError: when the file is not what was written, or memory cannot be pinned or copied
        """
        if not self.path.is_file() or self.path.stat().st_size != self.layout.total:
            raise RuntimeError(
                f"the staged weights {self.path} ({self.layout.total} bytes) are gone or changed; they belong to the "
                "checkpoint: put the file back, or start the server anew"
            )
        with self.path.open("rb") as stream:

            def read_piece(piece: Piece, buffer: Buffer) -> None:
                self._expect(os.preadv(stream.fileno(), [buffer.memory[: piece.size]], piece.offset), piece)
                driver().copy_to_device(piece.pointer, buffer.address, piece.size, buffer.stream)

            transfer(self.pieces, read_piece)

    def discard(self) -> None:
        """Removes the file and its layout."""
        self.path.unlink(missing_ok=True)
        Layout.path(self.path).unlink(missing_ok=True)

    def _expect(self, count: int, piece: Piece) -> None:
        if count != piece.size:
            raise RuntimeError(f"{self.path}: {count} bytes instead of {piece.size} at offset {piece.offset}")


def transfer(pieces: Iterable[Piece], move: Callable[[Piece, Buffer], None]) -> None:
    """Hands every piece to `move` on one of several threads, with a buffer that is off the bus; returns when all have arrived."""
    waiting: SimpleQueue[Piece] = SimpleQueue()
    for piece in pieces:
        waiting.put(piece)
    context = driver().current_context()

    def work(own: list[Buffer]) -> None:
        driver().use_context(context)
        for buffer in cycle(own):
            try:
                piece = waiting.get_nowait()
            except Empty:
                return
            driver().wait(buffer.stream)
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
        driver().pin(address, len(pages))
        buffers = [
            Buffer(view[number * PIECE : (number + 1) * PIECE], address + number * PIECE, stream)
            for number, stream in enumerate(streams(count))
        ]
        try:
            yield buffers
        finally:
            for buffer in buffers:
                driver().wait(buffer.stream)
                buffer.memory.release()
            driver().unpin(address)
            # a mapping cannot be closed while something points into it
            view.release()
            del first


_streams: list[int] = []


def streams(count: int) -> list[int]:
    """Streams of the current context. They are kept: they hold no memory, and making them again would be within a wake-up."""
    while len(_streams) < count:
        _streams.append(driver().make_stream())
    return _streams[:count]
