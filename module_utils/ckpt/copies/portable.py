# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a checkpoint of one node fits another: the same identity, with files known by content where their times differ."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from ..checkpoints import digests
from ..golden import identity
from ..golden.identity import Identity
from ..golden.wanted import Wanted
from ..node.inspection import Node
from .publication import Publication

# parts of an identity that know files by size and time
STAMPED = ("files", "programs")
SERVER = "server"
SIZE = " bytes of "
Stamped = dict[tuple[str, str], str]


def contents(made: Identity, node: Node | None = None) -> dict[str, str]:
    """A digest of each file, program and folder that an identity knows by size and time."""
    node = node or Node()
    paths = {key: _path(node, *key) for key in _stamped(made)}
    return {_spelled(key): digest for key, path in paths.items() if path and (digest := content_digest(path))}


def server_keys(wanted: Wanted) -> dict[str, str]:
    """A digest for each key of a server's description: what differs can be named, and is not told."""
    return {key: identity.digest(value) for key, value in wanted.server.items()}


def misfits(
    published: Publication,
    wanted: Wanted,
    now: Identity,
    node: Node | None = None,
    digest: Callable[[str], str | None] | None = None,
) -> list[str]:
    """In words, why a published checkpoint does not fit this node; empty if it does."""
    node, digest = node or Node(), digest or content_digest
    made = {
        key: dict(value) if key in STAMPED and isinstance(value, Mapping) else value
        for key, value in published.identity.items()
    }
    for key, stamp in _stamped(now).items():
        before = _stamped(made).get(key)
        if before is None or before == stamp or _other_size(before, stamp):
            continue
        path = _path(node, *key)
        if path and published.contents.get(_spelled(key)) == digest(path):
            made[key[0]][key[1]] = stamp
    found = identity.differences(made, now)
    if made.get(SERVER) == now.get(SERVER):
        return found
    ours = server_keys(wanted)
    other = sorted(key for key in {*ours, *published.server} if ours.get(key) != published.server.get(key))
    rest = [text for text in found if not text.startswith(f"{SERVER} was ")]
    return [*rest, f"the server's description differs in {', '.join(other) or 'its order'}"]


def content_digest(path: str) -> str | None:
    """A digest of a file, or of all files of a folder with their names; None where there is nothing."""
    real = os.path.realpath(path)
    if os.path.isfile(real):
        return digests.of_files(os.path.dirname(real), [os.path.basename(real)])[os.path.basename(real)]
    if not os.path.isdir(real):
        return None
    names = []
    for parent, folders, files in os.walk(real):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        names += [os.path.relpath(os.path.join(parent, name), real) for name in sorted(files)]
        if len(names) > identity.MOST_FILES:
            break
    there = [name for name in names[: identity.MOST_FILES] if os.path.isfile(os.path.join(real, name))]
    found = digests.of_files(real, there)
    return hashlib.sha256(
        "".join(f"{name}\0{found[name]}\n" for name in there).encode("utf-8", "surrogateescape")
    ).hexdigest()


def _stamped(made: Mapping[str, Any]) -> Stamped:
    """What an identity knows by size and time: (part, path or program) → stamp."""
    found = {}
    for part in STAMPED:
        entries = made.get(part)
        for name, stamp in entries.items() if isinstance(entries, Mapping) else ():
            if isinstance(stamp, str):
                found[part, str(name)] = stamp
    return found


def _spelled(key: tuple[str, str]) -> str:
    return ":".join(key)


def _path(node: Node, part: str, name: str) -> str | None:
    """Where a file or program lies on this node."""
    path = node.which(name) if part == "programs" else name
    return None if path is None else node.path(path)


def _other_size(before: str, now: str) -> bool:
    """Whether two stamps are those of files of different sizes; folders do not tell theirs."""
    return SIZE in before and SIZE in now and before.partition(SIZE)[0] != now.partition(SIZE)[0]
