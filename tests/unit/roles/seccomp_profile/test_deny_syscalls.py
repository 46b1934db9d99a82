# SPDX-License-Identifier: GPL-3.0-or-later
"""The seccomp profile that denies io_uring: every other rule as it was, and none that contradicts it."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from project import ROOT

SOURCE = ROOT / "roles/seccomp_profile/filter_plugins/deny_syscalls.py"
IO_URING = ["io_uring_setup", "io_uring_enter", "io_uring_register"]
PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [
        {"names": ["read", *IO_URING, "write"], "action": "SCMP_ACT_ALLOW", "args": []},
        {"names": ["io_uring_setup"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
    ],
}


@pytest.fixture(scope="module")
def deny() -> Any:
    """The filter, as Ansible finds it in the role."""
    spec = importlib.util.spec_from_file_location("deny_syscalls", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FilterModule().filters()["deny_syscalls"]


def rules_for(profile: dict[str, Any], name: str) -> list[tuple[str, int | None]]:
    """Action and errno of each rule that names a system call."""
    return [(rule["action"], rule.get("errnoRet")) for rule in profile["syscalls"] if name in rule["names"]]


def test_each_denied_call_has_one_rule_and_answers_enosys(deny: Any) -> None:
    profile = deny(json.dumps(PROFILE), IO_URING, "here")
    for name in IO_URING:
        assert rules_for(profile, name) == [("SCMP_ACT_ERRNO", 38)]


def test_the_rest_is_as_it_was(deny: Any) -> None:
    profile = deny(json.dumps(PROFILE), IO_URING, "here")
    assert rules_for(profile, "read") == rules_for(profile, "write") == [("SCMP_ACT_ALLOW", None)]
    assert rules_for(profile, "bpf") == [("SCMP_ACT_ERRNO", 1)]
    assert {key: value for key, value in profile.items() if key != "syscalls"} == {
        key: value for key, value in PROFILE.items() if key != "syscalls"
    }


def test_no_rule_is_left_without_a_name(deny: Any) -> None:
    profile = deny(json.dumps(PROFILE), IO_URING, "here")
    assert all(rule["names"] for rule in profile["syscalls"])
    assert len(profile["syscalls"]) == 3


def test_denying_twice_is_denying_once(deny: Any) -> None:
    once = deny(json.dumps(PROFILE), IO_URING, "here")
    assert deny(json.dumps(once), IO_URING, "here") == once


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"defaultAction": "SCMP_ACT_ERRNO"}', "not JSON"])
def test_what_is_no_profile_is_refused_by_name(deny: Any, text: str) -> None:
    with pytest.raises(AnsibleFilterError, match=r"/etc/theirs\.json is no seccomp profile"):
        deny(text, IO_URING, "/etc/theirs.json")
