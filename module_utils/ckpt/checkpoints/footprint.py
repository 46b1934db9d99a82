# SPDX-License-Identifier: GPL-3.0-or-later
"""How many bytes a dump of a server will write, from what /proc says of its memory and files.

What the GPU holds is not in it: cuda.process_bytes tells that. Memory that the processes share counts once, the pages
of forked relatives once for each, as CRIU writes them.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from ..criu.choice import Criu
from ..system import mounts, procfs

PAGE = os.sysconf("SC_PAGE_SIZE")
BLOCK_BYTES = 512
# Mapped by a restore of patched CRIU: the page image itself, or what a delta checkpoint keeps of an older one
PAGE_IMAGE = re.compile(r"/(pages-[0-9]+|mapped-base-[0-9a-f]+)\.img( \(deleted\))?$")
DEFAULT_MAPPED_MIN_KB = 64
# Images of kinds that are small: for a server, for a process, for a thread, for a mapping
SMALL_IMAGES_BYTES = 256 << 10
PROCESS_BYTES = 16 << 10
THREAD_BYTES = 2 << 10
MAPPING_BYTES = 128
# In each 8 bytes of pagemap: bits 63 (in memory), 62 (in swap), 61 (of a file)
PAGEMAP_ENTRY = 8
WRITTEN = bytes(byte >> 5 in (2, 4, 6) for byte in range(256))


class Redump(NamedTuple):
    """What CRIU makes of memory that a restore has mapped from page images.

    :param as_memory: whether it is anonymous memory to it (patched), or a file like others (as released).
    :param delta_from: the folder of the new images; None unless only changes are written.
    :param min_bytes: unchanged runs that are shorter are written, too.
    """

    as_memory: bool
    delta_from: str | None = None
    min_bytes: int = DEFAULT_MAPPED_MIN_KB << 10


def redump_of(criu: Criu, folder: str) -> Redump:
    """How this build with these switches dumps mapped memory into the folder, which need not exist yet."""
    description = criu.files.read_description() or {}
    if description.get("build") != "patched":
        return Redump(as_memory=False)
    switches = criu.effective_switches()
    if switches.get("CRIU_MAPPED_REDUMP") != "delta":
        return Redump(as_memory=True)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return Redump(True, folder, int(switches.get("CRIU_MAPPED_MIN_KB") or DEFAULT_MAPPED_MIN_KB) << 10)


def dump_bytes(pids: Iterable[int], redump: Redump) -> int:
    """What a dump of the processes writes, the first one first, within 10 %, without the GPU's memory."""
    pids = list(pids)
    found = dict(item for pid in pids for item in [*_memory(pid, redump), *_open_files(pid)])
    return SMALL_IMAGES_BYTES + sum(found.values()) + _container_files(pids[0] if pids else os.getpid())


def is_page_image(name: str) -> bool:
    """Whether a mapping of this name is taken for memory that a mapped restore has mapped."""
    return PAGE_IMAGE.search(name) is not None


def _memory(pid: int, redump: Redump) -> Iterator[tuple[object, int]]:
    """Bytes of each mapping, by an identity that those who share it have in common."""
    yield (pid, "process"), PROCESS_BYTES + THREAD_BYTES * len(procfs.names(f"/proc/{pid}/task"))
    for mapping in procfs.mappings(pid, sizes=True):
        from_image = redump.as_memory and mapping.is_private and is_page_image(mapping.name)
        yield (pid, mapping.range), MAPPING_BYTES + (_mapped(mapping, redump) if from_image else _own(mapping))
        if mapping.name.startswith("/") and not from_image:
            with suppress(OSError):
                yield from _without_name(os.stat(mapping.file))


def _own(mapping: procfs.Mapping) -> int:
    """Private pages, in memory or swapped out; those of a file only once they were written."""
    if not mapping.is_private:
        return 0
    return sum(mapping.kib.get(key, 0) for key in ("Anonymous", "Swap", "Private_Hugetlb")) << 10


def _mapped(mapping: procfs.Mapping, redump: Redump) -> int:
    """What patched CRIU writes of memory that comes from a page image: all, or what cannot stay in the image."""
    start, end = mapping.bounds
    if redump.delta_from is None or "x" in mapping.access or mapping.kib.get("Locked"):
        return end - start
    with suppress(OSError):
        image = os.stat(mapping.file)
        if image.st_nlink and image.st_dev == os.stat(redump.delta_from).st_dev:
            return end - start - _unwritten(mapping.pid, start, end, redump.min_bytes)
    return end - start


def _unwritten(pid: int, start: int, end: int, min_bytes: int) -> int:
    """Bytes in runs, not shorter than `min_bytes`, of pages of which the process has no copy of its own."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        entries = os.pread(pagemap.fileno(), (end - start) // PAGE * PAGEMAP_ENTRY, start // PAGE * PAGEMAP_ENTRY)
    written = entries[PAGEMAP_ENTRY - 1 :: PAGEMAP_ENTRY].translate(WRITTEN)
    runs = (found.end() - found.start() for found in re.finditer(rb"\0+", written))
    return sum(run * PAGE for run in runs if run * PAGE >= min_bytes)


def _open_files(pid: int) -> Iterator[tuple[object, int]]:
    """Files that have no name, and what lies in pipes."""
    for number in procfs.names(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{number}"
        with suppress(OSError):
            found = os.stat(path)
            if stat.S_ISFIFO(found.st_mode) and os.readlink(path).startswith("pipe:"):
                yield (found.st_dev, found.st_ino), _queued(path)
            yield from _without_name(found)


def _without_name(found: os.stat_result) -> Iterator[tuple[object, int]]:
    """A file that goes into the images since no name leads to it: deleted, or memory that is shared."""
    if stat.S_ISREG(found.st_mode) and not found.st_nlink:
        yield (found.st_dev, found.st_ino), found.st_blocks * BLOCK_BYTES


def _queued(pipe: str) -> int:
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)
    finally:
        os.close(descriptor)


def _container_files(pid: int) -> int:
    """Bytes in file systems in memory that are a container's own: CRIU packs them, and they may get smaller."""
    ours = {device for device, _ in _memory_mounts("self")}
    used = {}
    for device, point in _memory_mounts(pid):
        if device not in ours:
            with suppress(OSError):
                size = os.statvfs(f"/proc/{pid}/root{point}")
                used[device] = (size.f_blocks - size.f_bfree) * size.f_frsize
    return sum(used.values())


def _memory_mounts(pid: int | str) -> Iterator[tuple[str, str]]:
    return ((mount.device, mount.point) for mount in mounts.of_process(pid) if mount.fstype == "tmpfs")
