# SPDX-License-Identifier: GPL-3.0-or-later
"""The page cache of a checkpoint's files: dropped or warmed, and proven by mincore."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable

from ..errors import CkptError

PAGE_BYTES = mmap.PAGESIZE
WINDOW_BYTES = 1 << 30
READ_BYTES = 4 << 20
MAX_RESIDENT_DROPPED = 0.01
MIN_RESIDENT_WARM = 0.99


def prepare(state: str, paths: Iterable[str]) -> float:
    """Brings files into a state (`warm` or `dropped`) and returns the fraction of their pages that is resident.

    Raises CkptError (bad_input) if the kernel keeps the pages, as it does on a tmpfs.
    """
    files = [path for path in paths if os.path.getsize(path) > 0]
    for path in files:
        if state == "dropped":
            _drop(path)
        elif resident_fraction([path]) < 1.0:
            _read(path)
    fraction = resident_fraction(files)
    if state == "dropped" and fraction > MAX_RESIDENT_DROPPED:
        raise CkptError(
            "bad_input",
            f"page_cache is `dropped`, but {fraction:.0%} of the images stay in memory (a tmpfs has no other place for "
            "them); keep the checkpoint on a disk (source: disk), or ask for page_cache: warm.",
        )
    if state == "warm" and fraction < MIN_RESIDENT_WARM:
        raise CkptError(
            "bad_input",
            f"page_cache is `warm`, but only {fraction:.0%} of the images fit into memory; "
            "free memory, or ask for page_cache: dropped.",
        )
    return fraction


def resident_fraction(paths: Iterable[str]) -> float:
    """Fraction (0 to 1) of the files' pages that lies in memory, as mincore tells; 1 for no pages."""
    resident = total = 0
    for path in paths:
        here, pages = _resident_pages(path)
        resident += here
        total += pages
    return resident / total if total else 1.0


def _drop(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _read(path: str) -> None:
    buffer = bytearray(READ_BYTES)
    with open(path, "rb", buffering=0) as source:
        while source.readinto(buffer):
            pass


def _resident_pages(path: str) -> tuple[int, int]:
    size = os.path.getsize(path)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    resident = total = 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for offset in range(0, size, WINDOW_BYTES):
            length = min(WINDOW_BYTES, size - offset)
            pages = -(-length // PAGE_BYTES)
            address = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, offset)
            if address in (None, ctypes.c_void_p(-1).value):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
            flags = ctypes.create_string_buffer(pages)
            status = libc.mincore(address, length, flags)
            libc.munmap(address, length)
            if status != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
            resident += pages - flags.raw[:pages].count(0)
            total += pages
    finally:
        os.close(descriptor)
    return resident, total
