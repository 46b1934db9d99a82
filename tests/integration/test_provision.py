# SPDX-License-Identifier: GPL-3.0-or-later
"""Provisioning is repeatable, can be tried dry, and can be taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from plays import STORE, WEIGHTS_MIB, differences, node_state, play

NOTHING: dict[str, Any] = {"mounts": [], "images": [], "files": {}}
pytestmark = pytest.mark.integration


def test_a_second_run_changes_nothing(provisioned: object) -> None:
    assert play("provision.yml", gpuckpt_weights_mib=WEIGHTS_MIB).changed == 0


@pytest.mark.long
def test_a_dry_run_on_a_provisioned_machine_changes_nothing(provisioned: object) -> None:
    before = node_state()
    assert play("provision.yml", "--check", "--diff", gpuckpt_weights_mib=WEIGHTS_MIB).changed == 0
    assert differences(before, node_state()) == []


def test_rollback_puts_the_machine_back(provisioned: object, was_bare: dict[str, object] | None) -> None:
    before = node_state()
    said = play("rollback.yml").output
    bare = node_state()
    # what something else left on this machine before the tests is not the rollback's
    assert traces(bare) == traces(was_bare or NOTHING)
    assert not Path("/run/gpuckpt").exists()
    assert differences(was_bare or bare, bare) == []
    assert "packages" in said, "a rollback tells what stays"

    assert play("provision.yml", "--check", "--diff", gpuckpt_weights_mib=WEIGHTS_MIB).changed > 0
    assert differences(bare, node_state()) == []

    play("provision.yml", gpuckpt_weights_mib=WEIGHTS_MIB)
    assert current_criu(node_state()) == current_criu(before)
    assert traces(node_state()) == traces(before)


def traces(state: dict[str, Any]) -> list[str]:
    """What bears the project's name.

    But for the builds of CRIU, of which an older machine may have more, and what Python compiled when a server ran.
    """
    named = [*state["mounts"], *state["images"], *state["files"]]
    links = [path for path, content in state["files"].items() if content.startswith("link to /opt/gpuckpt/")]
    return sorted(
        name
        for name in {*named, *links}
        if (name == STORE or "gpuckpt" in name or name in links)
        and not name.startswith("/opt/gpuckpt/criu/")
        and "__pycache__" not in name
    )


def current_criu(state: dict[str, Any]) -> str:
    """The link that tells which build is in use, and where it leads."""
    files = state["files"]
    link = "/opt/gpuckpt/criu/current"
    variant = files[link].removeprefix("link to ")
    return f"{variant} {files[f'/opt/gpuckpt/criu/{variant}']}"
