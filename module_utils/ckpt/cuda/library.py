# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver's library, libcuda, loaded into this process."""

from __future__ import annotations

import ctypes
import os

from ..criu import settings

NAME = "libcuda.so.1"
CUDA_SUCCESS = 0


def path() -> str:
    """What is given to the loader: the path that this process's environment or the node's criu.env says, or the name."""
    named = os.environ.get(settings.LIBCUDA)
    node = settings.read(settings.DEFAULTS_FILE)
    return named or (node.values.get(settings.LIBCUDA) if node else None) or NAME


def load() -> ctypes.CDLL:
    """The library. Raises OSError if the loader does not find it, or cannot use it."""
    return ctypes.CDLL(path())
