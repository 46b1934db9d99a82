# SPDX-License-Identifier: GPL-3.0-or-later
"""When role bundle refuses to make one."""

from __future__ import annotations

from typing import Any

import pytest
from project import filters_of

ROLE = filters_of("bundle")
ASKED: dict[str, Any] = {"python": "/p", "part_mib": 52, "components": ["collections", "criu"], "tarball": ""}
HERE: dict[str, Any] = {
    "python_serves": True,
    "machine": "x86_64",
    "has_tarball": False,
    "has_collections": True,
    "has_dpkg": True,
    "lacking": [],
    "root_refused": None,
}
NO_DPKG = "CRIU is built with packages of Debian or Ubuntu, and this machine has no dpkg-query."


@pytest.mark.parametrize(
    ("asked", "here"),
    [
        ({}, {}),
        # packages are installed by whoever may
        ({}, {"lacking": ["gcc"]}),
        ({"tarball": "criu.tar.xz"}, {"has_tarball": True}),
        ({"components": ["podman"]}, {"machine": "aarch64", "has_collections": False, "has_dpkg": False}),
        ({"components": ["collections"], "tarball": "/none"}, {}),
    ],
)
def test_what_can_be_made_is_made(asked: dict[str, Any], here: dict[str, Any]) -> None:
    assert ROLE.bundle_problems({**ASKED, **asked}, {**HERE, **here}) == []


@pytest.mark.parametrize(
    ("asked", "here", "said"),
    [
        ({}, {"python_serves": False}, "bundle_python (/p) must be Python 3.11 or newer with pip and packaging."),
        ({"part_mib": "0"}, {}, "bundle_part_mib is 0; it must be at least 1."),
        ({}, {"has_collections": False}, "The collections are missing. Run make setup."),
        ({"tarball": "/none"}, {}, "bundle_criu_tarball is /none, which does not exist."),
        ({}, {"machine": "aarch64"}, "CRIU is built for x86_64, and this machine is aarch64."),
        ({}, {"has_dpkg": False, "lacking": ["gcc", "make"]}, NO_DPKG),
    ],
)
def test_each_reason_is_named(asked: dict[str, Any], here: dict[str, Any], said: str) -> None:
    [problem] = ROLE.bundle_problems({**ASKED, **asked}, {**HERE, **here})
    assert problem.startswith(said)


def test_who_may_not_become_root_is_told_what_root_would_do() -> None:
    here = {**HERE, "lacking": ["gcc", "make"], "root_refused": "Task failed.\nsudo: a password is required\n"}
    [problem] = ROLE.bundle_problems(ASKED, here)
    assert "(sudo: a password is required)" in problem
    assert problem.endswith("apt-get install --no-install-recommends gcc make")


def test_of_a_python_that_does_not_start_nothing_else_is_said() -> None:
    assert len(ROLE.bundle_problems(ASKED, {**HERE, "python_serves": False, "machine": ""})) == 1


def test_all_reasons_are_named_at_once() -> None:
    asked, here = {**ASKED, "part_mib": 0, "tarball": "/none"}, {**HERE, "machine": "aarch64"}
    assert len(ROLE.bundle_problems(asked, here)) == 3
