# SPDX-License-Identifier: GPL-3.0-or-later
"""Files written whole or not at all, and small ones read."""

from __future__ import annotations

import json
import os
from typing import Any

from ..parsing import FormatError, parse_json

# no document of ours comes near it, not with the digests of a large checkpoint
DOCUMENT_BYTES = 64 << 20


def write_atomically(path: str, text: str, mode: int = 0o600) -> None:
    """Replaces `path` by `text`; after a crash there is the old content or the new, never a part."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    scratch = f"{path}.{os.getpid()}.partial"
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


def write_json(path: str, value: Any, mode: int = 0o600) -> None:
    """Writes a JSON document atomically, on one line, so that documents can be joined to JSON lines."""
    write_atomically(path, json.dumps(value, ensure_ascii=False) + "\n", mode)


def read_json(path: str) -> Any | None:
    """The JSON document at `path`, None if there is none. Raises FormatError if it is not JSON, as parse_json has it."""
    try:
        with open(path, "rb") as source:
            content = source.read(DOCUMENT_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(content) > DOCUMENT_BYTES:
        raise FormatError(f"is larger than {DOCUMENT_BYTES >> 20} MiB")
    return parse_json(content)


def read_text(path: str) -> str:
    """A log or pseudo file as text, empty if it is missing or unreadable; bytes that are not UTF-8 are replaced."""
    try:
        with open(path, "rb") as source:
            return source.read().decode("utf-8", "replace")
    except OSError:
        return ""


def remove(path: str) -> None:
    """Removes a file that may be gone already."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
