#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packs a folder of Python modules into an archive that is named after its content, and prints the archive's path.

    pack.py FOLDER DESTINATION

The same files give the same archive, whenever and by whomever it is packed.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

NAME_LENGTH = 16


def pack(folder: Path) -> bytes:
    """An uncompressed tar archive of the folder's Python files, below the folder's own name."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in sorted(folder.rglob("*.py")):
            content = file.read_bytes()
            entry = tarfile.TarInfo(str(file.relative_to(folder.parent)))
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def main() -> int:
    """Pack; returns the exit status."""
    if len(sys.argv) != 3:
        print("usage: pack.py FOLDER DESTINATION", file=sys.stderr)
        return 2
    content = pack(Path(sys.argv[1]))
    destination = Path(sys.argv[2]) / f"{hashlib.sha256(content).hexdigest()[:NAME_LENGTH]}.tar"
    destination.parent.mkdir(parents=True, exist_ok=True)
    if not destination.exists():
        scratch = destination.with_suffix(f".{os.getpid()}")
        scratch.write_bytes(content)
        scratch.replace(destination)
    print(destination)
    return 0


if __name__ == "__main__":
    sys.exit(main())
