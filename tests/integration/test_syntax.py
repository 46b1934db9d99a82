# SPDX-License-Identifier: GPL-3.0-or-later
"""Every shim at the top leads to a play that Ansible can read, with every inventory that comes along."""

from __future__ import annotations

import pytest
import yaml
from plays import ROOT, play

pytestmark = pytest.mark.integration

SHIMS = sorted(path.name for path in ROOT.glob("*.yml") if path.name not in ("requirements.yml",))
INVENTORIES = sorted(path.name for path in (ROOT / "inventories").iterdir() if path.is_dir())


def test_the_promised_shims_are_there() -> None:
    assert {"provision.yml", "bench.yml", "report.yml", "doctor.yml", "rollback.yml"} <= set(SHIMS)


@pytest.mark.parametrize("shim", SHIMS)
def test_a_shim_imports_the_play_of_its_name(shim: str) -> None:
    (imported,) = yaml.safe_load((ROOT / shim).read_text())
    assert imported["ansible.builtin.import_playbook"] == f"playbooks/{shim}"


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_all_plays_can_be_read_with(inventory: str) -> None:
    play(*SHIMS, "--syntax-check", "--inventory", f"inventories/{inventory}")
