# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether crun can checkpoint on a node; runc always can."""

from __future__ import annotations

from .inspection import Node, cgroups

LIBCRIU = "libcriu.so.2"


def crun_lacks(version: str, libcriu: bool, cgroup_mode: str) -> list[str]:
    """What crun needs for a checkpoint and does not have: `criu` (built with it), `libcriu`, `cgroup-v2` (alone).

    :param version: what `crun --version` prints, empty where there is no crun.
    :param libcriu: whether the dynamic linker finds the library.
    :param cgroup_mode: as told by `inspection.cgroups`.
    """
    has = {"criu": "+CRIU" in version, "libcriu": libcriu, "cgroup-v2": cgroup_mode == "v2"}
    return [name for name, there in has.items() if not there]


def finds_libcriu(node: Node) -> bool:
    """Whether the dynamic linker finds the library that crun loads for a checkpoint."""
    return LIBCRIU in node.run("ldconfig", "-p").stdout


def node_lacks(node: Node) -> list[str]:
    """What this node's crun lacks, as `crun_lacks` tells it."""
    return crun_lacks(node.run("crun", "--version").stdout, finds_libcriu(node), cgroups(node))
