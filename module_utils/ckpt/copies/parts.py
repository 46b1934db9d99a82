# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a checkpoint as parts of one size: what is copied, resumed and verified one by one.

A part holds what is data in the files, one after the other, and no holes. So sparse files stay sparse. No object of a remote is
large, and a transfer that was broken off goes on with the part at which it was.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from ..errors import CkptError

# holes smaller than this are copied as zeros: each costs an entry of the manifest
SMALLEST_HOLE = 64 << 10
MAX_PART_BYTES = 8 << 30
# stays in a processor's cache between its copy and its digest; larger ones cost the kernel more
CHUNK_BYTES = 256 << 10
# two files that the kernel cannot copy between: of two file systems, or of one that does not know how
NOT_WITHIN_KERNEL = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
SYNC_FILE_RANGE_WRITE = 2


@dataclass(frozen=True)
class File:
    """A file of a checkpoint: path relative to its folder, size, and where its data lie ([offset, bytes], ascending).

    Owner and mode matter for files that a restore gives back to the server.
    """

    path: str
    bytes: int
    data: list[list[int]] = field(default_factory=list)
    mode: int = 0o600
    owner: int = 0
    group: int = 0


@dataclass(frozen=True)
class Piece:
    """Data of one file."""

    path: str
    offset: int
    bytes: int


def cut(files: Iterable[File], part_bytes: int) -> list[list[Piece]]:
    """The pieces of each part. All parts but the last hold `part_bytes`."""
    parts: list[list[Piece]] = []
    room = 0
    for file in files:
        for start, length in file.data:
            offset, end = start, start + length
            while offset < end:
                if not room:
                    parts.append([])
                    room = part_bytes
                taken = min(room, end - offset)
                parts[-1].append(Piece(file.path, offset, taken))
                offset, room = offset + taken, room - taken
    return parts


def data_of(descriptor: int, size: int) -> list[list[int]]:
    """Where the data of an open file lie, small holes counted as data."""
    found: list[list[int]] = []
    offset = 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            # only a hole is left
            if error.errno == errno.ENXIO:
                break
            raise
        if start >= size:
            break
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        if found and start - sum(found[-1]) < SMALLEST_HOLE:
            found[-1][1] = end - found[-1][0]
        else:
            found.append([start, end - start])
        offset = end
    return found


@contextmanager
def in_memory() -> Iterator[int]:
    """An empty file in memory, for a document; yields its descriptor."""
    descriptor = os.memfd_create("document")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def room_for_part() -> Iterator[int]:
    """A file in memory for a part; yields its descriptor. It still holds the part before: who fills it sets its size.

    Memory that is new must be zeroed by the kernel, which takes longer than all else that is done with a part.
    """
    with _IDLE_LOCK:
        descriptor = _IDLE.pop() if _IDLE else os.memfd_create("part")
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        with _IDLE_LOCK:
            _IDLE.append(descriptor)


_LIBC = ctypes.CDLL(None)
_IDLE: list[int] = []
_IDLE_LOCK = threading.Lock()
_WRITING = threading.Lock()


def ends_here(descriptor: int) -> None:
    """Whoever wrote to the open file from its beginning has written all: what lies behind is of a part before."""
    os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR))


def gather(pieces: Sequence[Piece], opened: Mapping[str, int], into: int) -> str:
    """Copies the data of one part from open files to another; returns their sha256, hexadecimal.

    Raises OSError, and CkptError (images_damaged) for a file that shrank.
    """
    size = sum(piece.bytes for piece in pieces)
    if os.fstat(into).st_size != size:
        os.ftruncate(into, size)
    digest, position = hashlib.sha256(), 0
    for piece in pieces:
        for content in _copied(opened[piece.path], piece.offset, into, position, piece.bytes):
            if not content:
                raise CkptError(
                    "images_damaged", f"{piece.path} ended while it was copied; see who changed the checkpoint."
                )
            digest.update(content)
        position += piece.bytes
    return digest.hexdigest()


def scatter(pieces: Sequence[Piece], part: int, opened: Mapping[str, int]) -> str:
    """Copies one part to where its data belong; returns the sha256 (hexadecimal) of what was written. Raises OSError."""
    digest, position = hashlib.sha256(), 0
    for piece in pieces:
        for content in _copied(part, position, opened[piece.path], piece.offset, piece.bytes, _WRITING):
            digest.update(content)
        position += piece.bytes
    return digest.hexdigest()


def _copied(
    source: int, offset: int, target: int, at: int, count: int, lock: AbstractContextManager[object] | None = None
) -> Iterator[bytes]:
    """Copies between open files, and yields what was written, chunk by chunk; an empty one if the source has ended.

    Under the lock is what writes: threads that write to one file hold each other up.
    """
    lock = lock or nullcontext()
    within_kernel = True
    while count:
        wanted = min(CHUNK_BYTES, count)
        if within_kernel:
            try:
                with lock:
                    taken = os.copy_file_range(source, target, wanted, offset, at)
            except OSError as error:
                if error.errno not in NOT_WITHIN_KERNEL:
                    raise
                within_kernel = False
                continue
            # read where it was written to: nobody else can have changed that
            content = os.pread(target, taken, at)
        else:
            content = os.pread(source, wanted, offset)
            with lock:
                _write(target, content, at)
        yield content
        if not content:
            return
        offset, at, count = offset + len(content), at + len(content), count - len(content)


def _write(descriptor: int, content: bytes, at: int) -> None:
    """Writes all: a file system that is getting full takes less than it was given."""
    left = memoryview(content)
    while left:
        count = os.pwrite(descriptor, left, at)
        left, at = left[count:], at + count


def fill(descriptor: int, content: bytes) -> None:
    """Gives an open file this content, whatever it had."""
    os.ftruncate(descriptor, len(content))
    _write(descriptor, content, 0)


def begin_to_write(pieces: Sequence[Piece], opened: Mapping[str, int]) -> None:
    """Lets the disk begin with what was written, while the next parts arrive; who waits for it has less to wait for.

    It may take as long as the disk does.
    """
    for path, descriptor in {piece.path: opened[piece.path] for piece in pieces}.items():
        offsets = [end for piece in pieces if piece.path == path for end in (piece.offset, piece.offset + piece.bytes)]
        first, length = ctypes.c_int64(offsets[0]), ctypes.c_int64(offsets[-1] - offsets[0])
        # a file system that cannot (one in memory) has nothing to begin with
        _LIBC.sync_file_range(descriptor, first, length, SYNC_FILE_RANGE_WRITE)


def begin_to_write_all(descriptor: int) -> None:
    """The same for a whole file."""
    _LIBC.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), SYNC_FILE_RANGE_WRITE)


def digest_of_pieces(pieces: Sequence[Piece], opened: Mapping[str, int]) -> str:
    """sha256 (hexadecimal) of the data of one part where they lie; of less, where a file is shorter."""
    digest = hashlib.sha256()
    for piece in pieces:
        for offset in range(piece.offset, piece.offset + piece.bytes, CHUNK_BYTES):
            count = min(CHUNK_BYTES, piece.offset + piece.bytes - offset)
            digest.update(os.pread(opened[piece.path], count, offset))
    return digest.hexdigest()


def digest_of(descriptor: int) -> str:
    """sha256 of a whole open file, hexadecimal."""
    digest, offset = hashlib.sha256(), 0
    while content := os.pread(descriptor, CHUNK_BYTES, offset):
        # lets other threads run meanwhile
        digest.update(content)
        offset += len(content)
    return digest.hexdigest()
