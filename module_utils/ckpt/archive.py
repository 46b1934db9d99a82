# SPDX-License-Identifier: GPL-3.0-or-later
"""Packing and unpacking images, for checkpoints that travel as one file."""

from __future__ import annotations

import os

from ansible.module_utils.ckpt.commands import Commands
from ansible.module_utils.ckpt.errors import CkptError

COMPRESSORS = {".tar": [], ".gz": ["--gzip"], ".zst": ["--zstd"]}
TIMEOUT_S = 3600.0


def pack(commands: Commands, folder: str, path: str) -> None:
    """Write the files of `folder` to the archive `path`. Raises CkptError (store_full, runtime_failed)."""
    _tar(commands, ["--create", f"--file={path}", f"--directory={folder}", *_compressor(path), "."])


def unpack(commands: Commands, path: str, folder: str) -> None:
    """Unpack an archive that `pack` wrote. Raises CkptError (store_full, runtime_failed)."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    _tar(commands, ["--extract", f"--file={path}", f"--directory={folder}", *_compressor(path)])


def _compressor(path: str) -> list[str]:
    return COMPRESSORS[os.path.splitext(path)[1]]


def _tar(commands: Commands, options: list[str]) -> None:
    result = commands.run(["tar", *options], TIMEOUT_S)
    if result.rc == 0:
        return
    lines = result.stderr.strip().splitlines()
    if "No space left" in result.stderr:
        raise CkptError(
            "store_full",
            "the checkpoint store has no room for the archive; delete old checkpoints, or make it larger.",
            lines,
        )
    raise CkptError("runtime_failed", f"tar failed ({lines[0] if lines else result.rc}); see the log lines.", lines)
