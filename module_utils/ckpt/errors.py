# SPDX-License-Identifier: GPL-3.0-or-later
"""Failures with a cause, a fix and a reason from a closed list."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from .vocabulary import REASONS


class CkptError(Exception):
    """A failure a user can act on.

    :param reason: one of REASONS.
    :param message: one sentence or two that name the cause and the fix.
    :param log_lines: the lines of a log that show the cause.
    """

    def __init__(self, reason: str, message: str, log_lines: list[str] | None = None) -> None:
        if reason not in REASONS:
            raise ValueError(f"{reason} is not one of the reasons")
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.log_lines = log_lines or []


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def of_os_error(error: OSError) -> CkptError:
    """The failure that stands for what the operating system refused: store_full, file_unusable, or internal.

    For the errors that nobody expected; where a flow knows more of the cause, it says so itself.
    """
    cause = error.strerror or str(error)
    path = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None
    if error.errno in NO_ROOM:
        return CkptError(
            "store_full",
            f"{path or 'a file'} cannot be written ({cause}); "
            "delete what is not needed on its file system, or make that larger.",
        )
    if path is None:
        return CkptError(
            "internal", f"the node refused a call ({cause}); see dmesg, and the limits of root (ulimit -a)."
        )
    return CkptError(
        "file_unusable",
        f"{path} cannot be used ({cause}); see that it is what it should be, that its file system is mounted for "
        "writing, and that root may use it.",
    )


@contextmanager
def os_errors_explained() -> Iterator[None]:
    """Within, an OSError that nobody expected becomes the CkptError that stands for it, with its traceback as log lines."""
    try:
        yield
    except OSError as error:
        failure = of_os_error(error)
        failure.log_lines = traceback.format_exc().splitlines()[-8:]
        raise failure from error
