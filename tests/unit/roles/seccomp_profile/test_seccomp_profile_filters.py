# SPDX-License-Identifier: GPL-3.0-or-later
"""Which settings role seccomp_profile refuses."""

from __future__ import annotations

from typing import Any

import pytest
from project import filters_of

ROLE = filters_of("seccomp_profile")
ASKED: dict[str, Any] = {
    "path": "/etc/containers/seccomp.d/ours.json",
    "denied": ["io_uring_setup"],
    "origins": ["", "/usr/share/containers/seccomp.json"],
}
HOST = {"name": "node", "user_id": 0}


def test_settings_that_can_work_are_taken() -> None:
    assert ROLE.seccomp_profile_problems(ASKED, HOST) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path": "ours.json"}, "seccomp_profile_path is ours.json; it must be absolute and differ from"),
        ({"path": ""}, "seccomp_profile_path is ;"),
        ({"path": "/usr/share/containers/seccomp.json"}, "seccomp_profile_path is /usr/share/containers/seccomp.json;"),
        ({"path": "/a", "origins": ["/a"]}, "seccomp_profile_path is /a;"),
        ({"denied": []}, "seccomp_profile_denied is empty: name at least one system call."),
    ],
)
def test_each_mistake_is_named(change: dict[str, Any], said: str) -> None:
    [problem] = ROLE.seccomp_profile_problems({**ASKED, **change}, HOST)
    assert problem.startswith(said)


def test_root_is_needed() -> None:
    [problem] = ROLE.seccomp_profile_problems(ASKED, {"name": "node", "user_id": 1000})
    assert problem == "seccomp_profile needs root on node. Run with --become, or as root."


def test_all_mistakes_are_named_at_once() -> None:
    assert len(ROLE.seccomp_profile_problems({**ASKED, "path": "", "denied": []}, {**HOST, "user_id": 1})) == 3
