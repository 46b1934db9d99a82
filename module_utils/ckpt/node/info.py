# SPDX-License-Identifier: GPL-3.0-or-later
"""What roles must know of a node, as data; what follows from it is decided on the controller."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..criu.folder import BuildFolder
from ..vocabulary import BUILDS
from . import packages as package_manager
from .inspection import Node, capabilities, hard_limits, memory_bytes, mounts, sysctl
from .oci import node_lacks

# that bound the limits of a process, whatever it may raise
SYSCTLS = ("fs.nr_open", "kernel.pid_max")


@dataclass(frozen=True)
class Place:
    """A path: whether it exists, where its file system is mounted, and the bytes that are free there; None if it does not.

    `filesystem` is the type of the file system that it lies on, or would lie on if it were made.
    """

    exists: bool
    mount: str | None = None
    free_bytes: int | None = None
    filesystem: str | None = None


def describe(
    node: Node,
    criu_home: str,
    paths: Sequence[str] = (),
    records: str | None = None,
    packages: Sequence[str] = (),
    candidates: Sequence[str] = (),
) -> dict[str, Any]:
    """Builds, packages, space, records, mounts, memory (bytes), capabilities and limits of a node.

    :param criu_home: folder of the builds of CRIU.
    :param paths: what is asked for; each comes back with a `Place`.
    :param records: folder whose records are counted; it need not exist.
    :param packages: those of which is told whether they are installed.
    :param candidates: those of which is told whether apt could install them.
    """
    return {
        "builds": builds(node, criu_home),
        "capabilities": capabilities(node),
        "complete_builds": complete_builds(node, criu_home),
        "crun_lacks": node_lacks(node),
        "glibc": glibc(),
        "limits": hard_limits(),
        "links": links(node, [*node.glob(f"{criu_home}/*"), *paths]),
        "memory": memory_bytes(node),
        "mounts": [
            {"target": one.point, "type": one.fstype, "source": one.source, "options": sorted(one.options)}
            for one in mounts(node)
        ],
        "offered": package_manager.offered(node, candidates),
        "packages": package_manager.installed(node, packages),
        "paths": {path: asdict(place(node, path)) for path in paths},
        "records": len(node.glob(f"{records}/*.json")) if records else 0,
        "sysctls": {name: sysctl(node, name) for name in SYSCTLS},
    }


def builds(node: Node, home: str) -> list[str]:
    """The names by which a lane can choose a build that has its program."""
    return [name for name in BUILDS if os.access(node.path(BuildFolder(f"{home}/{name}").binary), os.X_OK)]


def complete_builds(node: Node, home: str) -> list[str]:
    """The folders of builds that are whole, by name, the newest first; links to them are left out."""
    descriptions = [path for path in node.glob(BuildFolder(f"{home}/*").description) if not _is_link(node, path)]
    by_age = sorted(descriptions, key=lambda path: os.stat(node.path(path)).st_mtime_ns, reverse=True)
    return [os.path.basename(os.path.dirname(path)) for path in by_age]


def _is_link(node: Node, description: str) -> bool:
    return os.path.islink(node.path(os.path.dirname(description)))


def links(node: Node, paths: Sequence[str]) -> dict[str, str]:
    """Those of the paths that are symbolic links, with what they name as it is written."""
    return {path: os.readlink(node.path(path)) for path in paths if os.path.islink(node.path(path))}


def glibc() -> str | None:
    """The version of the C library that this process runs with, None if it is another than glibc."""
    known = "CS_GNU_LIBC_VERSION" in os.confstr_names
    name, _, version = ((known and os.confstr("CS_GNU_LIBC_VERSION")) or "").partition(" ")
    return version if name == "glibc" else None


def place(node: Node, path: str) -> Place:
    """Where a path is, links followed."""
    if not path or not node.exists(path):
        return Place(exists=False, filesystem=filesystem(node, path))
    sizes = os.statvfs(node.path(path))
    return Place(True, mount_point(node, path), sizes.f_bavail * sizes.f_frsize, filesystem(node, path))


def filesystem(node: Node, path: str) -> str | None:
    """The type of the file system of a path, or of the nearest folder above it that exists; None if the kernel does not tell."""
    if not os.path.isabs(path):
        return None
    while not node.exists(path):
        path = os.path.dirname(path)
    point = mount_point(node, path)
    # the uppermost of those that are mounted there
    return next((mount.fstype for mount in reversed(mounts(node)) if mount.point == point), None)


def mount_point(node: Node, path: str) -> str | None:
    """Where the file system is mounted that a path is on, links followed; None if the kernel does not tell."""
    inside = os.path.relpath(os.path.realpath(node.path(path)), os.path.realpath(node.root))
    real = os.path.join("/", "" if inside == "." else inside)
    above = [mount.point for mount in mounts(node) if os.path.commonpath([real, mount.point]) == mount.point]
    return max(above, key=len, default=None)
