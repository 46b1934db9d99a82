# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of the files that CRIU links back beside deleted ones: its first restore uses them up, the next one fails.

A process that holds a file without its name (a POSIX semaphore, for one) is dumped with `--link-remap`: CRIU gives the
file a name again, `link_remap.N` in the same folder, and a restore takes that name away; so does a dump that leaves the
process running. In a container the folder is part of the checkpoint; on a host it is the host's own /dev/shm.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterable, Iterator

from ansible.module_utils.ckpt.criu_stats import fields
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.files import read_json, remove, write_json

INDEX = "index.json"
HEADER_BYTES = 8
LINKED = 0
DELETED = " (deleted)"


def linked_back(images: str) -> dict[str, str]:
    """Absolute path of each link_remap file of the images in a folder → the name that the file had."""
    names = {file[1]: _text(file[6]) for file in _regular_files(images)}
    found = {}
    for entry in _entries(os.path.join(images, "remap-fpath.img")):
        remap = dict(fields(entry))
        if remap.get(3, LINKED) == LINKED:
            found[_absolute(names[remap[2]])] = _absolute(names[remap[1]])
    return found


def size_of(images: str, path: str) -> int | None:
    """Size in bytes that an open file had when its holder was frozen; None if the images do not hold the file."""
    for file in _regular_files(images):
        size = file.get(8)
        if _absolute(_text(file[6])) == path and isinstance(size, int):
            return size
    return None


def _regular_files(images: str) -> Iterator[dict[int, int | bytes]]:
    """CRIU's reg_file_entry of each regular file that was open, by field number: 1 id, 6 name, 8 size."""
    for entry in _entries(os.path.join(images, "files.img")):
        regular = dict(fields(entry)).get(3)
        if isinstance(regular, bytes):
            yield dict(fields(regular))


def _absolute(name: str) -> str:
    return f"/{name.lstrip('/')}"


def _text(value: int | bytes) -> str:
    """A name in an image. Raises ValueError if the field holds a number."""
    if isinstance(value, int):
        raise ValueError("an image of CRIU holds a number where a file's name belongs")
    return value.decode("utf-8", "surrogateescape")


def _entries(path: str) -> Iterator[bytes]:
    """The protobuf messages of an image: after the header, each with its size before it. None if there is no image."""
    try:
        with open(path, "rb") as source:
            image = source.read()
    except FileNotFoundError:
        return
    position = HEADER_BYTES
    while position + 4 <= len(image):
        (size,) = struct.unpack_from("<I", image, position)
        yield image[position + 4 : position + 4 + size]
        position += 4 + size


def keep(images: str, folder: str, pids: Iterable[int] = ()) -> None:
    """Move the files that the checkpoint in `images` had linked back to `folder`, which is replaced.

    They do not stay where they were: CRIU numbers them anew for each server, and the next dump would meet them.
    `pids` are the processes if they run on. Raises CkptError (criu_failed) if a file is nowhere to be found.
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, mode=0o700)
    links = linked_back(images)
    held = dict(_deleted_files(pids)) if links else {}
    for number, (link, name) in enumerate(links.items()):
        source = link if os.path.exists(link) else held.get(name)
        if source is None:
            raise CkptError(
                "criu_failed",
                f"the deleted file {name} of the checkpoint is gone, and without it no restore can succeed; "
                "take the checkpoint again while the server runs.",
            )
        _copy(source, os.path.join(folder, str(number)))
        if source == link:
            os.unlink(link)
    write_json(os.path.join(folder, INDEX), {"paths": list(links)})


def put_back(folder: str) -> None:
    """Put the files that are missing back where the dump left them."""
    index = read_json(os.path.join(folder, INDEX)) or {"paths": []}
    for number, path in enumerate(index["paths"]):
        if not os.path.exists(path):
            _copy(os.path.join(folder, str(number)), path)


def take_away(folder: str) -> None:
    """Remove what a restore that failed has not used up."""
    for path in (read_json(os.path.join(folder, INDEX)) or {"paths": []})["paths"]:
        remove(path)


def _deleted_files(pids: Iterable[int]) -> Iterator[tuple[str, str]]:
    """The name of each deleted file that a process holds, and a way to its contents."""
    for pid in pids:
        for folder in (f"/proc/{pid}/map_files", f"/proc/{pid}/fd"):
            for entry in os.scandir(folder):
                target = os.readlink(entry.path)
                if target.endswith(DELETED):
                    yield target[: -len(DELETED)], entry.path


def _copy(source: str, dest: str) -> None:
    status = os.stat(source)
    shutil.copyfile(source, dest)
    os.chmod(dest, status.st_mode & 0o7777)
    os.chown(dest, status.st_uid, status.st_gid)
