# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user types to serve from a golden checkpoint: twice, since the second time nothing is left to do."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from plays import WEIGHTS_MIB, play

pytestmark = pytest.mark.integration
NAME = "reference"
PROGRAM = "/opt/gpuckpt/serve/bin/gpuckpt-serve"
SETTINGS = {"gpuckpt_weights_mib": WEIGHTS_MIB, "inference_server_runtime": "process", "inference_server_port": 18078}
UNITS = [Path("/etc/systemd/system") / name for name in (f"gpuckpt-{NAME}.socket", f"gpuckpt-{NAME}.service")]
SERVICE = Path("/etc/systemd/system/gpuckpt-serve@.service")
LIMIT_S = 60


def status() -> dict[str, object]:
    done = subprocess.run([PROGRAM, "--status", NAME], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout)[0])


def test_it_is_made_once_and_served_by_the_program_that_the_play_brings(provisioned: object) -> None:
    """First on demand, whose units systemd takes, then without."""
    assert play("checkpoint.yml", "--check", **SETTINGS).changed == 1
    assert play("checkpoint.yml", **SETTINGS).changed == 1
    assert play("checkpoint.yml", **SETTINGS).changed == 0

    play("serve.yml", **SETTINGS, serve_on_demand=True)
    verified = subprocess.run(
        ["systemd-analyze", "verify", *UNITS, f"{SERVICE.parent}/gpuckpt-serve@{NAME}.service"],
        capture_output=True,
        text=True,
    )
    # it names units of the distribution that the machine lacks, too
    assert [line for line in verified.stderr.splitlines() if "gpuckpt" in line] == []

    said = play("serve.yml", **SETTINGS)
    assert f"{PROGRAM} {NAME}" in " ".join(said.output.split()), "systemd is not the first process here"
    assert not any(unit.exists() for unit in UNITS)
    assert play("serve.yml", **SETTINGS).changed == 0
    assert status()["misfits"] == []
    with subprocess.Popen([PROGRAM, NAME], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + LIMIT_S
        while process.poll() is None and status()["serving"] is None and time.monotonic() < deadline:
            time.sleep(0.1)
        serving = status()["serving"]
        process.terminate()
    assert isinstance(serving, dict)
    assert serving["mode"] == "restored", serving
    assert process.returncode == 0

    assert play("forget.yml", **SETTINGS).changed > 0
    assert play("forget.yml", **SETTINGS).changed == 0
    assert not Path("/var/lib/gpuckpt/golden", NAME).exists()
