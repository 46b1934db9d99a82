# SPDX-License-Identifier: GPL-3.0-or-later
"""Call io_uring_setup and print the name of the error, or ALLOWED if the kernel gave a ring."""

import ctypes
import errno

# The same number on every architecture.
SYS_IO_URING_SETUP = 425
PARAMETERS_BYTES = 120

libc = ctypes.CDLL(None, use_errno=True)
descriptor = libc.syscall(SYS_IO_URING_SETUP, 1, ctypes.create_string_buffer(PARAMETERS_BYTES))
print("ALLOWED" if descriptor >= 0 else errno.errorcode[ctypes.get_errno()])
