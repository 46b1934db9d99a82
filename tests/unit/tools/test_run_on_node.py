# SPDX-License-Identifier: GPL-3.0-or-later
"""What run_on_node.sh asks of Ansible. A fake stands for the controller's Python: it writes down its arguments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from project import ROOT

SCRIPT = ROOT / "tools" / "run_on_node.sh"
PLAYS = {"provision": "provision.yml", "doctor": "doctor.yml", "bench": "bench.yml"}


def arguments(work: Path, step: str, **environment: str) -> list[str]:
    """Runs a step in an empty work folder; returns what ansible-playbook was given, from the playbook on."""
    fake = work / "controller" / "bin" / "python"
    fake.parent.mkdir(parents=True)
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{work}/given\n')
    fake.chmod(0o755)
    inherited = {key: value for key, value in os.environ.items() if key in {"PATH", "HOME"}}
    subprocess.run(
        [SCRIPT, step], env={**inherited, "WORK": str(work), **environment}, check=True, capture_output=True, timeout=60
    )
    given = (work / "given").read_text().splitlines()
    return given[given.index(PLAYS[step]) :]


@pytest.mark.parametrize("step", PLAYS)
def test_model_and_extra_arguments_reach_every_play(tmp_path: Path, step: str) -> None:
    given = arguments(tmp_path, step, MODEL="llama-3.1-8b", EXTRA="-e checkpoint_store_size_mib=73728 -v")
    assert "gpuckpt_model=llama-3.1-8b" in given
    assert given[-3:] == ["-e", "checkpoint_store_size_mib=73728", "-v"]


@pytest.mark.parametrize("step", PLAYS)
def test_without_a_model_the_inventory_decides(tmp_path: Path, step: str) -> None:
    assert [argument for argument in arguments(tmp_path, step) if "gpuckpt_model" in argument] == []
