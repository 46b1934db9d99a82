# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter of the role seccomp_profile: which settings cannot work."""

from __future__ import annotations

from typing import Any

Data = dict[str, Any]

ROOT_ID = 0


def seccomp_profile_problems(asked: Data, host: Data) -> list[str]:
    """Returns everything in the settings that cannot work, each with what to do about it.

    :param asked: ``path`` of the profile, ``denied`` (names of system calls), ``origins`` (profiles that it may be derived from)
    :param host: ``name``, ``user_id`` (of the user whom the tasks run as)
    """
    path = asked["path"]
    rules = [
        (host["user_id"] != ROOT_ID, f"seccomp_profile needs root on {host['name']}. Run with --become, or as root."),
        (
            not path.startswith("/") or path in asked["origins"],
            f"seccomp_profile_path is {path}; it must be absolute and differ from the profile it is derived from.",
        ),
        (not asked["denied"], "seccomp_profile_denied is empty: name at least one system call."),
    ]
    return [message for wrong, message in rules if wrong]


class FilterModule:
    """Register the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filter by name."""
        return {"seccomp_profile_problems": seccomp_profile_problems}
