# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role checkpoint_store: how large the store is, how it is mounted, and what stands against it."""

from __future__ import annotations

import re
from typing import Any

Data = dict[str, Any]

# Also the source of the mount: a mount that bears another name is not ours.
SOURCE = "gpuckpt-store"
SYSTEM_MIB = 1024
SMALLEST_MIB = 64
LARGEST_AUTO_MIB = 16384
AUTO = "auto"
HUGE = ("never", "within_size", "advise", "always")
MIB = 1 << 20
PATH = re.compile(r"/\S+")


def checkpoint_store_plan(node: Data, asked: Data) -> Data:
    """Returns how the store is to be mounted, and what is mounted there.

    - ``size_mib`` and ``memory_mib``: of the store, and of the node
    - ``source`` and ``options``: those of the mount
    - ``mounted``: whether something is mounted at the path
    - ``mounted_source``, ``in_force``: source and options of what is mounted
    - ``ours``: whether this role mounted it
    - ``lacking``: our options that are not in force

    :param node: what the node has, as returned by ``ckpt_node_info``
    :param asked: ``path``, ``size_mib`` (a number or ``auto``), ``noexec``, ``huge``
    """
    memory_mib = node["memory"]["total"] // MIB
    size_mib = min(LARGEST_AUTO_MIB, memory_mib // 2) if asked["size_mib"] == AUTO else _whole(asked["size_mib"])
    # the last one lies on top
    mount = next((one for one in reversed(node["mounts"]) if one["target"] == asked["path"]), None)
    source, in_force = (mount["source"], mount["options"]) if mount else ("", [])
    noexec = ["noexec"] if asked["noexec"] else []
    # The kernel tells sizes in KiB, the mode without a leading zero, and does not tell huge=never.
    huge = [f"huge={asked['huge']}"] if asked["huge"] != "never" else []
    expected = ["nosuid", "nodev", "mode=700", f"size={size_mib * 1024}k", *noexec, *huge]
    return {
        "size_mib": size_mib,
        "memory_mib": memory_mib,
        "source": SOURCE,
        "options": ["mode=0700", "nosuid", "nodev", *noexec, f"size={size_mib}m", f"huge={asked['huge']}"],
        "mounted": mount is not None,
        "mounted_source": source,
        "ours": source == SOURCE,
        "in_force": in_force,
        "lacking": [option for option in expected if option not in in_force],
    }


def _whole(number: object) -> int:
    text = str(number)
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else 0


def checkpoint_store_problems(plan: Data, asked: Data, host: Data) -> list[str]:
    """Returns everything that cannot work, each with what to do about it.

    :param plan: as returned by ``checkpoint_store_plan``
    :param asked: what that took, and ``workload_mib``
    :param host: ``name`` and ``user_id``
    """
    path, size, huge, workload = asked["path"], asked["size_mib"], asked["huge"], asked["workload_mib"]
    needed_mib = plan["size_mib"] + workload + SYSTEM_MIB
    rules = [
        (host["user_id"] != 0, f"checkpoint_store needs root on {host['name']}. Run with --become, or as root."),
        (
            not PATH.fullmatch(path),
            f"checkpoint_store_path is {path}; it must be an absolute path without spaces, and not the root.",
        ),
        (
            size != AUTO and plan["size_mib"] < SMALLEST_MIB,
            f"checkpoint_store_size_mib is {size}; it must be auto or a number of MiB from {SMALLEST_MIB}.",
        ),
        (
            huge not in HUGE,
            f"checkpoint_store_huge is {huge}; it must be {', '.join(HUGE[:-1])} or {HUGE[-1]}.",
        ),
        (
            needed_mib > plan["memory_mib"],
            f"A checkpoint store of {plan['size_mib']} MiB does not fit into the memory of {host['name']} "
            f"({plan['memory_mib']} MiB) next to the workload ({workload} MiB) and the system ({SYSTEM_MIB} MiB). Lower "
            "checkpoint_store_size_mib or checkpoint_store_workload_mib, or leave the store out and use a disk.",
        ),
        (
            plan["mounted"] and not plan["ours"],
            f"{path} is a mount of {plan['mounted_source']} already, which this role did not make. "
            "Unmount it or choose another checkpoint_store_path.",
        ),
    ]
    return [message for wrong, message in rules if wrong]


class FilterModule:
    """Register the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filters by name."""
        return {"checkpoint_store_plan": checkpoint_store_plan, "checkpoint_store_problems": checkpoint_store_problems}
