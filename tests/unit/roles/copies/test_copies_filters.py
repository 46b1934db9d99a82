# SPDX-License-Identifier: GPL-3.0-or-later
"""What role copies decides: which programs are linked to a bundle's, which are installed, and which are missing."""

from __future__ import annotations

import pytest
from project import filters_of

ROLE = filters_of("copies")
TREE, LINKS = "/opt/gpuckpt/copies", "/usr/local/bin"


@pytest.mark.parametrize(
    ("there", "to_link", "to_install", "lacking"),
    [
        ([], [], ["rclone", "age"], ["rclone", "age"]),
        (["/usr/bin/rclone"], [], ["rclone", "age"], ["age"]),
        ([f"{TREE}/bin/rclone"], ["rclone"], ["age"], ["rclone", "age"]),
        ([f"{TREE}/bin/rclone", f"{LINKS}/rclone", "/usr/bin/age"], ["rclone"], ["age"], []),
        ([f"{TREE}/bin/rclone", "/usr/bin/rclone", f"{TREE}/bin/age"], ["age"], [], ["age"]),
    ],
)
def test_a_nodes_own_program_comes_before_a_bundles(
    there: list[str], to_link: list[str], to_install: list[str], lacking: list[str]
) -> None:
    wanted = ["rclone", "age"]
    paths = ROLE.copies_paths(wanted, TREE, LINKS)
    assert set(there) <= set(paths)
    found = [{"stat": {"exists": path in there, **({"path": path} if path in there else {})}} for path in paths]
    expected = {"to_link": to_link, "to_install": to_install, "lacking": lacking}
    assert ROLE.copies_programs(wanted, found, TREE, LINKS) == expected
