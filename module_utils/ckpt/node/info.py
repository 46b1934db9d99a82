# SPDX-License-Identifier: GPL-3.0-or-later
"""What roles must know of a node, as data; what follows from it is decided on the controller."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..criu.folder import BuildFolder
from ..vocabulary import BUILDS
from .inspection import Node, capabilities, hard_limits, memory_bytes, mounts, sysctl

# that bound the limits of a process, whatever it may raise
SYSCTLS = ("fs.nr_open", "kernel.pid_max")


@dataclass(frozen=True)
class Place:
    """A path: whether it exists, where its file system is mounted, and the bytes that are free there; None if it does not."""

    exists: bool
    mount: str | None = None
    free_bytes: int | None = None


def describe(node: Node, criu_home: str, paths: Sequence[str] = (), records: str | None = None) -> dict[str, Any]:
    """Builds, space, records, mounts, memory (bytes), capabilities and limits of a node.

    :param criu_home: folder of the builds of CRIU.
    :param paths: what is asked for; each comes back with a `Place`.
    :param records: folder whose records are counted; it need not exist.
    """
    return {
        "builds": builds(node, criu_home),
        "capabilities": capabilities(node),
        "limits": hard_limits(),
        "memory": memory_bytes(node),
        "mounts": [
            {"target": one.point, "type": one.fstype, "source": one.source, "options": sorted(one.options)}
            for one in mounts(node)
        ],
        "paths": {path: asdict(place(node, path)) for path in paths},
        "records": len(node.glob(f"{records}/*.json")) if records else 0,
        "sysctls": {name: sysctl(node, name) for name in SYSCTLS},
    }


def builds(node: Node, home: str) -> list[str]:
    """The names by which a lane can choose a build that has its program."""
    return [name for name in BUILDS if os.access(node.path(BuildFolder(f"{home}/{name}").binary), os.X_OK)]


def place(node: Node, path: str) -> Place:
    """Where a path is, links followed."""
    if not path or not node.exists(path):
        return Place(exists=False)
    sizes = os.statvfs(node.path(path))
    return Place(True, mount_point(node, path), sizes.f_bavail * sizes.f_frsize)


def mount_point(node: Node, path: str) -> str | None:
    """Where the file system is mounted that a path is on, links followed; None if the kernel does not tell."""
    inside = os.path.relpath(os.path.realpath(node.path(path)), os.path.realpath(node.root))
    real = os.path.join("/", "" if inside == "." else inside)
    above = [mount.point for mount in mounts(node) if os.path.commonpath([real, mount.point]) == mount.point]
    return max(above, key=len, default=None)
