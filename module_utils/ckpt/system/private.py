# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders and files that nobody but their owner can read: checkpoints hold weights and environment, logs hold prompts."""

from __future__ import annotations

import errno
import os
import stat

from ..errors import CkptError

FOLDER_MODE = 0o700
FILE_MODE = 0o600
OTHERS = stat.S_IRWXG | stat.S_IRWXO
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_folders(path: str) -> None:
    """Makes the folder and every missing one on the way to it, for their owner alone (os.makedirs opens those on the way)."""
    for folder in reversed(_way(path)):
        # one at a time: it gives the mode to the last folder only
        os.makedirs(folder, FOLDER_MODE, exist_ok=True)


def make_folder(path: str) -> None:
    """As `make_folders`, and the folder itself is closed if it is there and open to others.

    Raises CkptError (bad_input) if other users can exchange what lies in it or on the way to it.
    """
    make_folders(path)
    real = os.path.realpath(path)
    for folder in _way(real):
        _require_ours(folder)
    if os.stat(real).st_mode & OTHERS:
        os.chmod(real, FOLDER_MODE)


def _way(path: str) -> list[str]:
    """The folder, and those that it lies in, the outermost last."""
    found = [path.rstrip("/") or path]
    while (parent := os.path.dirname(found[-1])) not in ("", found[-1]):
        found.append(parent)
    return found


def _require_ours(folder: str) -> None:
    """Nobody else may rename what lies in the folder; in one with the sticky bit, like /tmp, only owners can."""
    status = os.stat(folder)
    if status.st_uid not in (0, os.geteuid()):
        raise CkptError(
            "bad_input",
            f"{folder} belongs to user {status.st_uid}, who could exchange what lies below it; name a folder of root's.",
        )
    if status.st_mode & OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
        raise CkptError(
            "bad_input",
            f"other users may write to {folder} (mode {stat.S_IMODE(status.st_mode):04o}), and could exchange what is put "
            f"there or below it; name another folder, or take that right away (chmod go-w {folder}).",
        )


def open_file(path: str) -> int:
    """Makes a file for its owner alone, or empties one and closes it to others; returns its descriptor, open for writing.

    What is no regular file, such as /dev/null, is left as it is. Raises OSError, also for a link or a file of another user.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            if status.st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, f"the file belongs to user {status.st_uid}", path)
            os.fchmod(descriptor, FILE_MODE)
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def make_file(path: str) -> None:
    """Makes an empty file for its owner alone; a program that opens it for writing keeps its mode."""
    os.close(open_file(path))
