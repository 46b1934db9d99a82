# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter that derives a seccomp profile which denies some system calls."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleFilterError

ENOSYS = 38


def deny_syscalls(profile: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return a copy of a seccomp profile in which the named system calls fail with ENOSYS.

    They are taken out of every other rule, since two rules for one system call contradict each other. ENOSYS, unlike
    EPERM, makes libraries fall back to what they used before the system call existed.

    Raises AnsibleFilterError if `profile` is no seccomp profile in the format of containers.
    """
    if not isinstance(profile, dict) or "defaultAction" not in profile or not isinstance(profile.get("syscalls"), list):
        raise AnsibleFilterError("deny_syscalls needs a seccomp profile of containers: an object with defaultAction and syscalls")
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


class FilterModule:
    """Offer the filter to Ansible."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"deny_syscalls": deny_syscalls}
