#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare a model's files with gpuckpt-model.json next to them, and with digests that are given: `check_model.py DIR JSON`.

Names everything that is wrong in one message. A file is read once. One whose size and time of change are those of
the last good comparison is taken as compared, so that the second run is instant. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MARK = "gpuckpt-model.json"
STAMP = ".gpuckpt-compared.json"


def sha256_of(path: Path) -> str:
    """Returns the hexadecimal SHA-256 digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def load(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file, an empty one if there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    except (OSError, ValueError):
        return {}


def problems(folder: Path, expected: dict[str, str]) -> list[str]:
    """Says of each file what is wrong with it; an empty list is good."""
    known = load(folder / STAMP)
    wrong, compared = [], {}

    def compare(name: str) -> str | None:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        state = [expected[name], path.stat().st_size, path.stat().st_mtime_ns]
        if known.get(name) != state and sha256_of(path) != expected[name]:
            return f"{name} has another SHA-256 than expected"
        compared[name] = state
        return None

    with ThreadPoolExecutor() as pool:
        wrong = [text for text in pool.map(compare, sorted(expected)) if text]
    if not wrong and compared != known:
        (folder / STAMP).write_text(json.dumps(compared, indent=1) + "\n")
    return wrong


def main() -> int:
    """Compares; returns the exit status."""
    folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])
    recorded = load(folder / MARK).get("sha256", {})
    differing = [name for name in given if name in recorded and recorded[name] != given[name]]
    wrong = [f"{name} is not the file that model_cache_sha256 names" for name in differing]
    wrong += problems(folder, {**recorded, **given})
    if not (folder / "config.json").is_file():
        wrong.append("config.json is missing")
    if wrong:
        print(
            f"the model in {folder} is not whole: {'; '.join(wrong)}. Remove the folder and provision again.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
