#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a folder for PYTHONPATH out of wheels, whole or not at all: for nodes without pip.

    unpack_wheels.py WHEELS SITE

Prints SITE if it was made anew, and nothing if it was made of the same wheels already.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import zipfile
from pathlib import Path

MARK = ".wheels"


def main(wheels: Path, site: Path) -> int:
    """Unpacks all wheels next to the folder, then puts it in place; returns the exit status."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        print(f"{wheels} holds no wheel", file=sys.stderr)
        return 1
    wanted = "".join(f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {wheel.name}\n" for wheel in found)
    mark = site / MARK
    if mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
        return 0
    new = site.with_name(f".{site.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(new)
    (new / MARK).write_text(wanted, encoding="utf-8")
    shutil.rmtree(site, ignore_errors=True)
    new.rename(site)
    print(site)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
