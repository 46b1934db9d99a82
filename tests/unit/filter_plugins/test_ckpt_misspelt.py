# SPDX-License-Identifier: GPL-3.0-or-later
"""A variable that is nearly one of the project's is named; the project's own and the user's are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ckpt_misspelt import ckpt_misspelt
from project import ROOT


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gpuckpt_iteration", "gpuckpt_iterations"),
        ("gpukpt_iterations", "gpuckpt_iterations"),
        ("gpuckpt_modle", "gpuckpt_model"),
        ("checkpoint_store_size", "checkpoint_store_size_mib"),
        ("inference_server_vllm_kv_cache_mb", "inference_server_vllm_kv_cache_mib"),
    ],
)
def test_a_slip_is_named_with_what_is_meant(name: str, meant: str) -> None:
    assert ckpt_misspelt([name]) == [f"{name} is a variable of no role and no play: is {meant} meant?"]


def test_other_peoples_names_are_left_alone() -> None:
    assert ckpt_misspelt(["gpuckpt_site", "my_iterations", "ansible_port", "criu", "inventory_hostname"]) == []


def test_what_an_earlier_play_of_the_same_run_set_is_left_alone() -> None:
    """As `make bench` has it: provision.yml and bench.yml in one run."""
    assert ckpt_misspelt(["doctor_report", "inference_server_model_path", "__inference_server_packages_of"]) == []


@pytest.mark.parametrize("folder", sorted(path.name for path in (ROOT / "inventories").iterdir()))
def test_the_inventories_that_come_along_have_none(folder: str) -> None:
    pages = (ROOT / "inventories" / folder).rglob("*_vars/**/*.yml")
    assert ckpt_misspelt(name for page in pages for name in yaml.safe_load(page.read_text(encoding="utf-8"))) == []


def test_the_lookup_hands_over_what_was_given_on_the_command_line() -> None:
    """By ansible itself, on no host's files: which names the lookup sees is Ansible's affair."""
    command = [str(Path(sys.executable).with_name("ansible")), "localhost", "-m", "ansible.builtin.debug"]
    command += ["-a", "msg={{ query('ansible.builtin.varnames', '.+') | ckpt_misspelt }}"]
    command += ["-e", json.dumps({"gpuckpt_iteration": 3})]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "is gpuckpt_iterations meant?" in " ".join(done.stdout.split()), done.stdout + done.stderr
    assert done.stdout.count("meant?") == 1, done.stdout
