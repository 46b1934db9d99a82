# SPDX-License-Identifier: GPL-3.0-or-later
"""Provisioning is repeatable, can be tried dry, and can be taken back."""

from __future__ import annotations

import os

import pytest
from conftest import WEIGHTS_MIB
from plays import STORE, node_state, play

pytestmark = pytest.mark.integration


def test_a_second_run_changes_nothing(provisioned: object) -> None:
    assert play("provision.yml", gpuckpt_weights_mib=WEIGHTS_MIB).changed == 0


def test_a_dry_run_on_a_provisioned_machine_changes_nothing(provisioned: object) -> None:
    before = node_state()
    assert play("provision.yml", "--check", "--diff", gpuckpt_weights_mib=WEIGHTS_MIB).changed == 0
    assert node_state() == before


def test_rollback_puts_the_machine_back(provisioned: dict[str, object]) -> None:
    play("rollback.yml")
    unprovisioned = node_state()
    assert not os.path.ismount(STORE)
    play("provision.yml", "--check", "--diff", gpuckpt_weights_mib=WEIGHTS_MIB)
    assert node_state() == unprovisioned, "a dry run changed a fresh machine"
    play("provision.yml", gpuckpt_weights_mib=WEIGHTS_MIB)
    assert os.path.ismount(STORE)
    assert node_state() != unprovisioned
    play("rollback.yml")
    assert node_state() == unprovisioned
    play("provision.yml", gpuckpt_weights_mib=WEIGHTS_MIB)
