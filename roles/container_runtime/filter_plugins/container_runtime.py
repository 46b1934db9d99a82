# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role container_runtime: which limits containers get, and what stands against a runtime on a node."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from typing import Any

Data = dict[str, Any]

UNLIMITED = "unlimited"
# podman's word for it
PODMANS_UNLIMITED = -1
RUNTIMES = ("runc", "crun")
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}\Z")
LACKS = {
    "criu": "it is not installed, or not built with CRIU (no +CRIU in `crun --version`)",
    "libcriu": "it does not find libcriu.so.2 (package libcriu2)",
    "cgroup-v2": "it needs cgroup v2 alone",
}


def container_runtime_limits(wanted: Data, node: Data) -> dict[str, int]:
    """Returns for each limit that is wanted the number that the node grants, -1 where nothing limits it.

    A process that lacks CAP_SYS_RESOURCE may not raise a hard limit, and none may pass the kernel's bounds. podman itself
    lowers nproc to the kernel's bound before it starts a container.

    :param wanted: numbers or ``unlimited`` for nofile, nproc and memlock (bytes)
    :param node: what the node has, as returned by ``ckpt_node_info``
    """
    kernel = {"nofile": node["sysctls"]["fs.nr_open"], "nproc": node["sysctls"]["kernel.pid_max"]}
    granted = {} if node["capabilities"]["CAP_SYS_RESOURCE"] else node["limits"]
    return {name: _lowest(value, granted.get(name), kernel.get(name)) for name, value in wanted.items()}


def _lowest(*limits: int | str | None) -> int:
    numbers = [int(limit) for limit in limits if limit not in (UNLIMITED, None)]
    return min(numbers, default=PODMANS_UNLIMITED)


def container_runtime_problems(asked: Data, host: Data) -> list[str]:
    """Returns everything in the settings that cannot work, each with what to do about it.

    :param asked: ``oci_runtime`` and ``image_pull``
    :param host: ``name``, ``user_id``, ``distribution`` and ``supported`` (distributions)
    """
    rules = [
        (host["user_id"] != 0, f"container_runtime needs root on {host['name']}. Run with --become, or as root."),
        (
            host["distribution"] not in host["supported"],
            f"container_runtime knows {', '.join(host['supported'])}, but {host['name']} runs {host['distribution']}. "
            "Leave this role out and install podman yourself.",
        ),
        (
            asked["oci_runtime"] not in RUNTIMES,
            f"container_runtime_oci_runtime is {asked['oci_runtime']}; only runc and crun can checkpoint.",
        ),
        (
            asked["image_pull"] != "" and not DIGEST.search(asked["image_pull"]),
            "container_runtime_image_pull must name the image by digest (name@sha256:...), "
            "so that what is pulled can be verified.",
        ),
    ]
    return [message for wrong, message in rules if wrong]


def container_runtime_crun_lacks(node: Data) -> list[str]:
    """Returns what crun lacks on a node for a checkpoint, in words.

    :param node: what the node has, as returned by ``ckpt_node_info``
    """
    return [LACKS[name] for name in node["crun_lacks"]]


def container_runtime_unfit(tree: Data, node: Data, asked: Data, host: Data) -> list[str]:
    """Returns why podman of a bundle cannot run on a node, each with what to do about it.

    :param tree: TREE.json of the bundle's podman
    :param node: what the node has, as returned by ``ckpt_node_info``
    :param asked: ``oci_runtime`` and ``rootfs``
    :param host: ``name`` and ``machine``
    """
    libc = node["glibc"] or "0"
    rules = [
        (
            _numbers(libc) < _numbers(tree["glibc"]),
            f"podman of the bundle needs glibc {tree['glibc']}, and {host['name']} has {libc}. "
            "Make the component podman on an older distribution, Debian 12 say.",
        ),
        (
            tree["machine"] != host["machine"],
            f"podman of the bundle is for {tree['machine']}, and {host['name']} is {host['machine']}.",
        ),
        (
            asked["oci_runtime"] != "runc",
            f"The bundle brings runc, and container_runtime_oci_runtime is {asked['oci_runtime']}. Set it to runc.",
        ),
        (
            not asked["rootfs"],
            "A node with podman of a bundle has no image. Set gpuckpt_rootfs: containers then run in its own tree.",
        ),
    ]
    return [message for wrong, message in rules if wrong]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]{1,9}", version)))


def container_runtime_mounted_below(mounts: Iterable[Data], folder: str) -> list[str]:
    """Returns the mount points below a folder, itself left out, in the order in which they can be unmounted.

    :param mounts: as returned by ``ckpt_node_info``
    """
    below = [mount["target"] for mount in mounts if mount["target"].startswith(posixpath.join(folder, ""))]
    # the innermost first; a mount upon another is there twice
    return sorted(below, reverse=True)


class FilterModule:
    """Register the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filters by name."""
        return {
            "container_runtime_crun_lacks": container_runtime_crun_lacks,
            "container_runtime_limits": container_runtime_limits,
            "container_runtime_mounted_below": container_runtime_mounted_below,
            "container_runtime_problems": container_runtime_problems,
            "container_runtime_unfit": container_runtime_unfit,
        }
