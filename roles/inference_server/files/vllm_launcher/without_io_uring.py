#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a command to which the kernel denies io_uring: `without_io_uring.py COMMAND [ARGUMENT ...]`.

CRIU cannot dump a process that holds an io_uring descriptor. ENOSYS is what an old kernel answers, so libraries fall
back quietly. For a container, the seccomp profile of role seccomp_profile does the same. x86-64 and AArch64 Linux.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
# The same three numbers on every architecture with the generic table, x86-64 included.
IO_URING = (425, 426, 427)
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NUMBER_OFFSET, ARCH_OFFSET = 0, 4
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def program(architecture: int) -> bytes:
    """Returns the BPF program: ENOSYS for io_uring of this architecture, everything else is allowed."""
    steps = [
        (LOAD_WORD, 0, 0, ARCH_OFFSET),
        (JUMP_IF_EQUAL, 0, len(IO_URING) + 1, architecture),
        (LOAD_WORD, 0, 0, NUMBER_OFFSET),
    ]
    for index, number in enumerate(IO_URING):
        steps.append((JUMP_IF_EQUAL, len(IO_URING) - index, 0, number))
    steps += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def deny() -> None:
    """Installs the filter for this process and its children.

    :raises OSError: when the kernel refuses it
    """
    code = program(AUDIT_ARCH[os.uname().machine])
    libc = ctypes.CDLL(None, use_errno=True)
    argument = Program(len(code) // 8, code)
    zero = ctypes.c_ulong(0)
    for call in (
        (PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero),
        (PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(argument), zero, zero),
    ):
        if libc.prctl(*call) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def main() -> int:
    """Denies io_uring, then becomes the command."""
    if len(sys.argv) < 2:
        print("usage: without_io_uring.py COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    try:
        deny()
        os.execvp(sys.argv[1], sys.argv[1:])
    except (OSError, KeyError) as error:
        print(f"without_io_uring: {error}; set kernel.io_uring_disabled=2 instead", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
