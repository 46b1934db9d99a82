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
