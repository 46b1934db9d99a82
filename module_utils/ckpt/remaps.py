# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of the files that CRIU links back beside deleted ones: its first restore uses them up, the next one fails.

A process that holds a file without its name (a POSIX semaphore, for one) is dumped with `--link-remap`: CRIU gives the
file a name again, `link_remap.N` in the same folder, and a restore takes that name away. In a container the folder is
part of the checkpoint; on a host it is the host's own /dev/shm.
"""

from __future__ import annotations

import os
import re
import shutil

from ansible.module_utils.ckpt.files import read_json, write_json

PREFIX = b"link_remap."
NAME = re.compile(re.escape(PREFIX) + rb"\d+")
# reg_file_entry.name: field 6, a string
NAME_TAG = b"\x32"
INDEX = "index.json"
LONGEST_PATH = 4096


def remapped_paths(files_image: bytes) -> list[str]:
    """Absolute paths of the link_remap files that files.img names."""
    found = {name for match in NAME.finditer(files_image) for name in _names(files_image, match)}
    return sorted(found)


def _names(image: bytes, match: re.Match[bytes]) -> list[str]:
    """The path that ends in this match. What follows a string may be a digit, too: its length decides."""
    shortest = match.start() + len(PREFIX) + 1
    names = (_string_that_ends(image, end) for end in range(match.end(), shortest - 1, -1))
    return [f"/{name.lstrip('/')}" for name in names if name][:1]


def _string_that_ends(image: bytes, end: int) -> str:
    """The name of a regular file (protobuf: tag, length in one or two bytes, text) that ends at `end`, or nothing."""
    for size in range(len(PREFIX) + 1, min(end, LONGEST_PATH)):
        length = bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])
        head = NAME_TAG + length
        start = end - size
        if start >= len(head) and image[start - len(head) : start] == head:
            return image[start:end].decode("utf-8", "surrogateescape")
    return ""


def keep(images: str, folder: str) -> None:
    """Copy the remapped files of the checkpoint in `images` to `folder`, which is replaced."""
    with open(os.path.join(images, "files.img"), "rb") as source:
        paths = [path for path in remapped_paths(source.read()) if os.path.isfile(path)]
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, mode=0o700)
    for number, path in enumerate(paths):
        _copy(path, os.path.join(folder, str(number)))
    write_json(os.path.join(folder, INDEX), {"paths": paths})


def put_back(folder: str) -> None:
    """Put the files that are missing back where the dump left them."""
    index = read_json(os.path.join(folder, INDEX)) or {"paths": []}
    for number, path in enumerate(index["paths"]):
        if not os.path.exists(path):
            _copy(os.path.join(folder, str(number)), path)


def _copy(source: str, dest: str) -> None:
    shutil.copy2(source, dest)
    status = os.stat(source)
    os.chown(dest, status.st_uid, status.st_gid)
