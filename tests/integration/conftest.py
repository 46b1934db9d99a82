# SPDX-License-Identifier: GPL-3.0-or-later
"""The integration tests share this machine: it is provisioned once, and put back when they end."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from plays import STORE, node_state, play

WEIGHTS_MIB = 64


@pytest.fixture(scope="session")
def machine() -> None:
    """Skip where the tests could not run, and say why."""
    if os.geteuid() != 0:
        pytest.skip("needs root: provisioning installs CRIU, and CRIU dumps processes")
    if shutil.which("podman") is None:
        pytest.skip("needs podman: run `make deps`")


@pytest.fixture(scope="session")
def provisioned(machine: None) -> Iterator[dict[str, object]]:
    """Provision this machine; yields its state before. One that was provisioned already stays so."""
    was_provisioned = os.path.ismount(STORE)
    before = node_state()
    play("provision.yml", gpuckpt_weights_mib=WEIGHTS_MIB)
    yield before
    if not was_provisioned:
        play("rollback.yml")
