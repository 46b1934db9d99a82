# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory that is there to be copied would do what its comments say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ckpt_lanes import ckpt_lanes

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def hosts():
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", "inventories/example", "--list"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["_meta"]["hostvars"]


def test_it_has_nodes_of_both_kinds(hosts):
    assert {host["gpuckpt_server"] for host in hosts.values()} == {"vllm", "reference"}


def test_a_node_with_vllm_is_provisioned_as_one_with_a_gpu(hosts):
    assert [
        name for name, host in hosts.items() if host["gpuckpt_server"] == "vllm" and not host.get("gpuckpt_gpu")
    ] == []


def test_its_lanes_are_accepted_and_have_a_baseline(hosts):
    for host in hosts.values():
        lanes = ckpt_lanes(host["gpuckpt_lanes"])
        assert [lane["name"] for lane in lanes if lane["baseline"]] in (["stock"], ["podman-stock"])
