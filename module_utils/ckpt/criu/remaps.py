# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies of the files that CRIU links back in place of deleted ones: its first restore uses them up, the next one fails.

A process that holds a file without its name (a POSIX semaphore, for one) is dumped with `--link-remap`. CRIU gives the
file a name again, `link_remap.N` in the same folder. A restore takes that name away, and so does a dump that leaves the
process running. In a container the folder is part of the checkpoint; on a host it is the host's own /dev/shm.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import BinaryIO

from ..errors import CkptError
from ..parsing import FormatError, pick
from ..system.files import read_json, remove, write_json
from . import image
from .image import FileEntry, ImageError, RemapEntry

INDEX = "index.json"
DELETED = " (deleted)"
# a file with a second name can be written by whoever has opened that
COMPARED = ("st_uid", "st_gid", "st_mode", "st_size", "st_nlink")
# device and inode
Identity = tuple[int, int]


def linked_back(images: str) -> dict[str, str]:
    """Absolute path of each link_remap file of the images in a folder → the name that the file had.

    Raises CkptError (images_truncated) if the images do not say.
    """
    with _damage_explained(images):
        names = {file.id: _absolute(file.name) for file in _regular_files(images)}
        remaps = map(RemapEntry.of, image.entries(os.path.join(images, "remap-fpath.img"), image.REMAPS))
        linked = [remap for remap in remaps if remap.type == image.LINKED]
        return {_named(names, remap.remap_id): _named(names, remap.original_id) for remap in linked}


def size_of(images: str, path: str) -> int | None:
    """Size in bytes that an open file had when its holder was frozen; None if the images do not hold the file.

    Raises CkptError (images_truncated) if the images do not say.
    """
    with _damage_explained(images):
        return {_absolute(file.name): file.size for file in _regular_files(images)}.get(path)


@contextmanager
def _damage_explained(images: str) -> Iterator[None]:
    """Within, an ImageError becomes a CkptError (images_truncated)."""
    try:
        yield
    except ImageError as error:
        raise CkptError(
            "images_truncated", f"a list of files in {images} {error}; take the checkpoint again."
        ) from error


def _regular_files(images: str) -> Iterator[FileEntry]:
    """The regular files that were open."""
    files = map(FileEntry.of, image.entries(os.path.join(images, "files.img"), image.FILES))
    return (file for file in files if file is not None)


def _named(names: Mapping[int, str], number: int) -> str:
    """Absolute path of the open file with that id. Raises ImageError if there is none."""
    if number not in names:
        raise ImageError(f"lacks the file with the id {number}")
    return names[number]


def _absolute(name: str) -> str:
    return f"/{name.lstrip('/')}"


def keep(images: str, folder: str, pids: Iterable[int] = ()) -> None:
    """Moves the files that the checkpoint in `images` had linked back to `folder`, which is replaced.

    They do not stay where they were: CRIU numbers them anew for each server, and the next dump would meet them.
    `pids` are the processes if they run on: CRIU has taken the links away again, and a file that lies there is not theirs.
    Raises CkptError (criu_failed) if a file is nowhere to be found or another one is in its place; no link is left then.
    """
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, mode=0o700)
    links = linked_back(images)
    running = list(pids)
    held = dict(_deleted_files(running)) if links else {}
    try:
        for number, (link, name) in enumerate(links.items()):
            with _open_held(held, name) if running else _open_link(link, name) as source:
                _copy(source, os.path.join(folder, str(number)))
        write_json(os.path.join(folder, INDEX), {"paths": list(links)})
    finally:
        for link, name in [] if running else links.items():
            with suppress(CkptError), _open_link(link, name):
                remove(link)


def put_back(folder: str) -> dict[str, Identity]:
    """Puts the files back where the dump left them; returns path and identity of each that is there now.

    Anybody can put a file of his own at such a name. One that is not what was kept is left alone, and nothing of ours
    stays next to it: raises CkptError (criu_failed) that names it.
    """
    placed: dict[str, Identity] = {}
    try:
        for kept, path in _index(folder):
            placed[path] = _put_back(kept, path)
    except BaseException:
        take_away(placed)
        raise
    return placed


def take_away(placed: Mapping[str, Identity]) -> None:
    """Removes what a restore that failed has not used up of the files that `put_back` placed, and nobody else's."""
    for path, identity in placed.items():
        with suppress(FileNotFoundError):
            if _identity(os.lstat(path)) == identity:
                os.unlink(path)


def _index(folder: str) -> list[tuple[str, str]]:
    """Each file that was kept, and where it belongs. Raises CkptError (images_truncated) if the list is damaged."""
    try:
        paths = pick(read_json(os.path.join(folder, INDEX)), "paths", kind=list[str], default=[])
    except FormatError as error:
        raise CkptError(
            "images_truncated", f"{os.path.join(folder, INDEX)} {error}; take the checkpoint again."
        ) from error
    return [(os.path.join(folder, str(number)), path) for number, path in enumerate(paths)]


def _put_back(kept: str, path: str) -> Identity:
    """Puts one file back where it is missing; returns which file lies there now."""
    _require_unmovable(path)
    with open(kept, "rb") as source:
        with suppress(FileExistsError):
            return _copy(source, path)
        found = _identity_if_same(source, path)
    if found is None:
        raise CkptError(
            "criu_failed",
            f"{path} is in the way: the checkpoint needs a file of its own at this name, and another one lies there "
            f"(of user {os.lstat(path).st_uid}); find out who put it there, remove it, then restore again.",
        )
    return found


def _identity_if_same(kept: BinaryIO, path: str) -> Identity | None:
    """Which file lies at `path`, if it is as the kept one: no link, without a second name, of the same owner, mode and bytes."""
    try:
        with _open_plain(path) as other:
            wanted, found = os.fstat(kept.fileno()), os.fstat(other.fileno())
            alike = all(getattr(wanted, key) == getattr(found, key) for key in COMPARED)
            return _identity(found) if alike and kept.read() == other.read() else None
    except OSError:
        return None


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _deleted_files(pids: Iterable[int]) -> Iterator[tuple[str, str]]:
    """The name of each deleted file that a process holds, and a way to its contents."""
    for pid in pids:
        for folder in (f"/proc/{pid}/map_files", f"/proc/{pid}/fd"):
            for entry in os.scandir(folder):
                target = os.readlink(entry.path)
                if target.endswith(DELETED):
                    yield target[: -len(DELETED)], entry.path


def _open_held(held: Mapping[str, str], name: str) -> BinaryIO:
    """A deleted file that a process still holds. Raises CkptError (criu_failed)."""
    if name not in held:
        raise CkptError(
            "criu_failed",
            f"the deleted file {name} of the checkpoint is gone, and without it no restore can succeed; "
            "take the checkpoint again while the server runs.",
        )
    return open(held[name], "rb")


def _open_link(link: str, name: str) -> BinaryIO:
    """The link that CRIU has made of a deleted file, which fails where a file of that name is. Raises CkptError (criu_failed)."""
    _require_unmovable(link)
    try:
        return _open_plain(link)
    except OSError as error:
        raise CkptError(
            "criu_failed",
            f"the deleted file {name} of the checkpoint is gone (CRIU left it at {link}: {error.strerror}), and without "
            "it no restore can succeed; take the checkpoint again.",
        ) from error


def _open_plain(path: str) -> BinaryIO:
    """Opens a regular file for reading. Raises OSError if it is anything else, a symbolic link for one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return os.fdopen(descriptor, "rb")


def _require_unmovable(path: str) -> None:
    """Nobody else may exchange what lies in the folder of `path`. Raises CkptError (criu_failed)."""
    folder = os.path.dirname(path)
    status = os.stat(folder)
    by_others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
    if status.st_uid not in (0, os.geteuid()) or by_others:
        raise CkptError(
            "criu_failed",
            f"the server holds a deleted file of {folder}, where other users can exchange files under CRIU's hands; "
            "let the server keep such files in a folder of root's, or in one with the sticky bit like /dev/shm.",
        )


def _copy(source: BinaryIO, dest: str) -> Identity:
    """Makes `dest` a copy with owner, mode and bytes of the open file `source`. Raises FileExistsError if there is a file."""
    status = os.fstat(source.fileno())
    descriptor = os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            shutil.copyfileobj(source, out)
            # the owner first: a change of it takes bits of the mode away
            os.fchown(out.fileno(), status.st_uid, status.st_gid)
            os.fchmod(out.fileno(), status.st_mode & 0o777)
            return _identity(os.fstat(out.fileno()))
    except BaseException:
        remove(dest)
        raise
