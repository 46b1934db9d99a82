# SPDX-License-Identifier: GPL-3.0-or-later
"""A checkpoint is made next to the one that it replaces, and takes its place only when it is complete.

The new one, and for a moment the old one, lie in hidden folders next to the checkpoint's own, since a rename needs one
filesystem. Whoever is killed between two steps leaves one complete checkpoint at least. The next operation on that folder
puts it in place and removes the rest. Callers hold the node's lock.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ..errors import CkptError
from ..system import mounts
from ..system.files import read_text
from .manifest import Layout, is_checkpoint, is_complete

BLOCK_BYTES = 512


def require_replaceable(folder: str) -> None:
    """Raises CkptError (bad_input) if what lies at `folder` cannot be replaced, or is no checkpoint and would be lost."""
    path = os.path.realpath(folder)
    if mounts.layers_at(path):
        raise CkptError(
            "bad_input",
            f"{folder} is a mount point, and a checkpoint is put in place by renaming its folder; name a folder below it.",
        )
    if os.path.lexists(path) and not (os.path.isdir(path) and is_checkpoint(path)):
        raise CkptError(
            "bad_input", f"{folder} holds something else than a checkpoint; name another folder, or move that away."
        )


def require_unmapped(folder: str, pids: Iterable[int]) -> None:
    """Raises CkptError (not_restorable) if a process has mapped files of the checkpoint that is to be replaced.

    CRIU as released notes only the path of such memory, and that leads to other contents afterwards.
    """
    if {(status.st_dev, status.st_ino) for status in _files(folder)} & set(_mapped_files(pids)):
        raise CkptError(
            "not_restorable",
            f"the server was restored by mapping from {folder}, and this build of CRIU would need these images for ever; "
            "set criu.build: patched, or take the checkpoint into another folder.",
        )


def begin(layout: Layout) -> Layout:
    """Where the new checkpoint is to be made: a folder that does not exist yet."""
    heal(layout.folder)
    return Layout(_new(layout.folder), layout.source)


def finish(folder: str) -> None:
    """Puts the complete new checkpoint in place. The one that was there is left for `heal` to remove, which may take seconds."""
    path = os.path.realpath(folder)
    if os.path.lexists(path):
        os.rename(path, _old(folder))
    os.rename(_new(folder), path)


def abandon(layout: Layout, log: str) -> None:
    """Removes a new checkpoint that failed; its file `log` stays in the work folder of the one in place, for the reader."""
    failed = Layout(_new(layout.folder), layout.source)
    with suppress(OSError):
        os.makedirs(layout.work, mode=0o700, exist_ok=True)
        os.rename(os.path.join(failed.work, log), os.path.join(layout.work, log))
    shutil.rmtree(failed.folder, ignore_errors=True)


def heal(folder: str) -> None:
    """Brings to its end, or takes back, a replacement that was broken off."""
    path, new, old = os.path.realpath(folder), _new(folder), _old(folder)
    left = [path for path in (new, old) if os.path.isdir(path)]
    complete = [path for path in left if is_complete(path)]
    if complete and not is_complete(path):
        shutil.rmtree(path, ignore_errors=True)
        os.rename(complete[0], path)
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def traces(folder: str) -> list[str]:
    """The checkpoint's folder, and what a replacement that was broken off left next to it, as far as they exist."""
    return [path for path in (_new(folder), _old(folder), os.path.realpath(folder)) if os.path.isdir(path)]


def freed_bytes(folder: str, pids: Iterable[int]) -> int:
    """Bytes that removing the checkpoint in `folder` would free: not what other checkpoints share, or `pids` have mapped."""
    mapped = set(_mapped_files(pids))
    return sum(
        status.st_blocks * BLOCK_BYTES
        for status in _files(folder)
        if status.st_nlink == 1 and (status.st_dev, status.st_ino) not in mapped
    )


def _files(folder: str) -> Iterator[os.stat_result]:
    return (os.lstat(os.path.join(parent, name)) for parent, _, names in os.walk(folder) for name in names)


def _mapped_files(pids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(device, inode) of each file that one of the processes has mapped."""
    for pid in pids:
        for line in read_text(f"/proc/{pid}/maps").splitlines():
            _, _, _, device, inode, *_ = line.split(None, 5)
            major, minor = device.split(":")
            yield os.makedev(int(major, 16), int(minor, 16)), int(inode)


def _new(folder: str) -> str:
    return _hidden(folder, "new")


def _old(folder: str) -> str:
    return _hidden(folder, "old")


def _hidden(folder: str, which: str) -> str:
    """Hidden, and with our name in it: nobody keeps a checkpoint of his own there."""
    parent, name = os.path.split(os.path.realpath(folder))
    return os.path.join(parent, f".{name}.gpuckpt-{which}")
