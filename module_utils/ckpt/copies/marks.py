# SPDX-License-Identifier: GPL-3.0-or-later
"""Marks at a remote: which node uses which publication, and which are being published. Nothing that is marked is removed."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime

from ..errors import CkptError
from . import keep
from .publication import BEGUN, Version
from .remotes import Remote

USED = "used/"


def key_of(node: str) -> str:
    """The object by which a node says what it uses; it has one for each name."""
    return USED + node


def use(remote: Remote, node: str, called: str, version: str) -> None:
    """From now on this node uses a version, and no other. Raises CkptError."""
    remote.put_json(key_of(node), {"version": version, "host": called or socket.gethostname(), "since": now()})


def used(remote: Remote, listing: Mapping[str, int | None], but: str | None = None) -> dict[str, list[str]]:
    """Which versions nodes use, and which nodes; those of one node are left out."""
    found: dict[str, list[str]] = {}
    for key in listing:
        if not key.startswith(USED) or key == but:
            continue
        with suppress(CkptError):
            mark = remote.get_json(key)
            if isinstance(mark, dict) and isinstance(mark.get("version"), str):
                found.setdefault(mark["version"], []).append(str(mark.get("host")))
    return found


def begin(remote: Remote, version: str, node: str) -> None:
    """Says that a version is being published. Raises CkptError."""
    remote.put_json(f"{version}/{BEGUN}", {"node": node, "begun_at": now()})


def begun(remote: Remote, one: Version) -> datetime | None:
    """When the publication of a version was begun; None where nobody says."""
    if BEGUN in one.objects:
        with suppress(CkptError):
            note = remote.get_json(f"{one.version}/{BEGUN}")
            return keep.moment(note.get("begun_at")) if isinstance(note, dict) else None
    return None


def now() -> str:
    """This moment, for a document."""
    return datetime.now(UTC).isoformat(timespec="seconds")
