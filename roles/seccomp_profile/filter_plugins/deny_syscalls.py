# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter that derives a seccomp profile which denies some system calls."""

from __future__ import annotations

import json
from typing import Any

from ansible.errors import AnsibleFilterError

ENOSYS = 38


def deny_syscalls(profile_json: str, names: list[str], origin: str) -> dict[str, Any]:
    """Returns the seccomp profile in `profile_json`, changed so that the named system calls fail with ENOSYS.

    They are taken out of every other rule, since two rules for one system call contradict each other. ENOSYS, unlike
    EPERM, makes libraries fall back to what they used before the system call existed.

    Raises AnsibleFilterError, naming `origin` (where the profile was read), if it is no seccomp profile of containers.
    """
    profile = parse(profile_json, origin)
    denied = {
        "names": sorted(names),
        "action": "SCMP_ACT_ERRNO",
        "args": [],
        "comment": "a process that holds an io_uring cannot be checkpointed",
        "includes": {},
        "excludes": {},
        "errnoRet": ENOSYS,
        "errno": "ENOSYS",
    }
    others = [{**rule, "names": [name for name in rule["names"] if name not in names]} for rule in profile["syscalls"]]
    return {**profile, "syscalls": [denied, *(rule for rule in others if rule["names"])]}


def parse(profile_json: str, origin: str) -> dict[str, Any]:
    """Returns the profile as an object; raises AnsibleFilterError if it is not one."""
    try:
        profile = json.loads(profile_json)
    except (ValueError, RecursionError):
        profile = None
    if not isinstance(profile, dict) or "defaultAction" not in profile or not are_rules(profile.get("syscalls")):
        raise AnsibleFilterError(
            f"{origin} is no seccomp profile of containers (a JSON object with defaultAction and syscalls); "
            "name another by seccomp_profile_base"
        )
    return profile


def are_rules(value: Any) -> bool:
    """Tells whether a value is a list of rules, each with the names of system calls."""
    return isinstance(value, list) and all(
        isinstance(rule, dict)
        and isinstance(rule.get("names"), list)
        and all(isinstance(name, str) for name in rule["names"])
        for rule in value
    )


class FilterModule:
    """Offer the filter to Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filters by name."""
        return {"deny_syscalls": deny_syscalls}
