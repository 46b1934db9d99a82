# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that are folders, and every kind of remote, one after the other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from places import KINDS, Node, Place

# What CI tries with WebDAV, too, which is rclone's as SFTP is: the way there and back, and what the server itself refuses.
WITH_WEBDAV = ("test_made_on_one_node_and_fetched_by_another", "test_wrong_credentials_are_named_and_shown_nowhere")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Marks the other tests of that kind of remote."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec and callspec.params.get("place") == "webdav" and item.originalname not in WITH_WEBDAV:
            item.add_marker(pytest.mark.long)


@pytest.fixture
def scratch(disk: Path) -> Path:
    """A folder that only root can write to, and whatever lies above it."""
    disk.chmod(0o700)
    return disk


@pytest.fixture(params=list(KINDS))
def place(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Place]:
    """Every kind of remote, one after the other."""
    if os.geteuid() != 0:
        pytest.skip("needs root: checkpoints are root's")
    with KINDS[request.param](scratch) as found:
        yield found


@pytest.fixture
def node(place: Place, scratch: Path) -> Callable[[str], Node]:
    """Nodes by name, which are told of the place."""
    return lambda name: Node(scratch / name, place.given)
