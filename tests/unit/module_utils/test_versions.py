# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions as programs print them."""

from __future__ import annotations

import pytest
from ansible.module_utils.ckpt.versions import version_in, version_tuple


@pytest.mark.parametrize(
    ("text", "expected"), [("4.2.1", (4, 2, 1)), ("3.17.1", (3, 17, 1)), ("4.1-dev12", (4, 1)), (None, ())]
)
def test_versions(text: str | None, expected: tuple[int, ...]) -> None:
    assert version_tuple(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Version: 4.2.1\nGitID: v4.2.1\n", "4.2.1"),
        ("podman version 4.3.1", "4.3.1"),
        ("runc version 1.1.5+ds1\nspec: 1.0.2-dev\n", "1.1.5"),
        ("no version 7 here", None),
    ],
)
def test_the_first_version_of_an_output(text: str, expected: str | None) -> None:
    assert version_in(text) == expected
