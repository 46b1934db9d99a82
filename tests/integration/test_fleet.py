# SPDX-License-Identifier: GPL-3.0-or-later
"""Two nodes reached over ssh, by an ordinary user with sudo.

They are provisioned from a bundle and measured side by side, and one of them is lost on the way. A node is a minimal root of this
machine's distribution in namespaces of its own (bare_node.sh). It has no network: ssh speaks to its server through a pipe. Everything else is as in a fleet: real sshd, real sudo, files copied, records fetched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from plays import ANSIBLE_PLAYBOOK, PURGE, RECAP, ROOT, ROOTFS, WEIGHTS_MIB, play, records

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
LANES = [
    {
        "name": "podman-stock",
        "start": "restore",
        "runtime": "podman",
        "build": "stock",
        "flags": ["--keep"],
        "baseline": True,
    },
    {
        "name": "process-mapped",
        "start": "restore",
        "runtime": "process",
        "build": "patched",
        "switches": {"CRIU_MAPPED_RESTORE": 1},
    },
]
# sudo complains on standard error when it cannot resolve the host's name, as on many a node.
INIT = """
echo 127.0.0.1 localhost >/etc/hosts
useradd --create-home --shell /bin/bash --password '*' ops
echo 'ops ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ops
install -d -m 0700 -o ops -g ops /home/ops/.ssh
echo "$0" >/home/ops/.ssh/authorized_keys
mkdir -p /run/sshd
touch /ready
sleep infinity &
wait
"""
SSH_ARGUMENTS = (
    "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "
    "-o ProxyCommand='nsenter --target {{ node_init }} --all -- /usr/sbin/sshd -i -o UsePAM=no -o LogLevel=ERROR'"
)


@dataclass(frozen=True)
class Node:
    """A running node: `holder` keeps its namespaces, `init` is its process number 1."""

    holder: subprocess.Popen[bytes]
    init: int

    def inside(self, *words: str) -> list[str]:
        """The words of a command that runs on the node."""
        return ["nsenter", f"--target={self.init}", "--all", "--", *words]

    def stop(self) -> None:
        """Ends every process of the node."""
        self.holder.kill()
        self.holder.wait(10)


@dataclass(frozen=True)
class Fleet:
    """Nodes by name, and the arguments that reach them."""

    nodes: dict[str, Node]
    inventory: Path
    variables: dict[str, Any]

    def play(self, playbook: str, *arguments: str, **variables: Any) -> str:
        """Runs a playbook on the fleet; returns what it said."""
        return play(playbook, "-i", str(self.inventory), *arguments, **self.variables, **variables).output

    def begin(self, playbook: str, **variables: Any) -> subprocess.Popen[str]:
        """Starts a playbook on the fleet, whose output is read while it runs."""
        extra = json.dumps({**self.variables, **variables})
        return subprocess.Popen(
            [ANSIBLE_PLAYBOOK, playbook, "-i", self.inventory, "--extra-vars", extra],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def ssh_variables(key: Path) -> dict[str, object]:
    """What an inventory says of nodes that are reached by ssh."""
    return {
        "ansible_user": "ops",
        "ansible_become": True,
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_common_args": SSH_ARGUMENTS,
    }


def start_node(root: Path, scratch: Path, public_key: str) -> Node:
    """Starts a node and waits until it can be reached."""
    scratch.mkdir()
    command = [HERE / "bare_node.sh", root, scratch, ROOT, "/usr", "bash", "-euc", INIT, public_key]
    holder = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (scratch / "root-upper/ready").exists():
        assert holder.poll() is None, "the node ended"
        assert time.monotonic() < deadline, "the node is not ready"
        time.sleep(0.1)
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
    return Node(holder, int(children[0]))


@pytest.fixture(scope="module")
def fleet(bundle: Path, bare_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two provisioned nodes, and a third host of another group that does not answer."""
    if shutil.which("ssh") is None:
        pytest.skip("needs ssh: install openssh-client")
    folder = tmp_path_factory.mktemp("fleet")
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public_key = key.with_suffix(".pub").read_text().strip()
    nodes: dict[str, Node] = {}
    try:
        for name in ("node-a", "node-b"):
            nodes[name] = start_node(bare_root, folder / name, public_key)
            subprocess.run(nodes[name].inside(*PURGE), check=True, stdout=subprocess.DEVNULL)
        inventory = {
            "all": {
                "vars": ssh_variables(key),
                "children": {
                    "gpu-nodes": {"hosts": {name: {"node_init": node.init} for name, node in nodes.items()}},
                    "elsewhere": {"hosts": {"node-c": {"node_init": 0}}},
                },
            }
        }
        (folder / "hosts.json").write_text(json.dumps(inventory))
        variables = {
            "gpuckpt_bundle": str(bundle),
            "gpuckpt_rootfs": ROOTFS,
            "gpuckpt_weights_mib": WEIGHTS_MIB,
            "gpuckpt_results_dir": str(folder / "runs"),
            "gpuckpt_lanes": LANES,
            "gpuckpt_iterations": 1,
            "gpuckpt_warmup_rounds": 0,
            "checkpoint_store_size_mib": 1024,
            "criu_distro": False,
        }
        made = Fleet(nodes, folder / "hosts.json", variables)
        made.play("provision.yml", "-l", "gpu-nodes")
        yield made
    finally:
        for node in nodes.values():
            node.stop()


def restores(run_dir: Path) -> dict[tuple[str, str, int], str]:
    """Status of each restore of a run by host, lane and iteration."""
    found = [record for record in records(run_dir) if record["kind"] == "restore"]
    return {(record["host"], record["lane"], record["iteration"]): record["status"] for record in found}


def test_a_fleet_is_measured_and_its_results_are_gathered(fleet: Fleet) -> None:
    said = fleet.play("bench.yml", "-l", "gpu-nodes", gpuckpt_run_id="both")
    run_dir = Path(fleet.variables["gpuckpt_results_dir"]) / "both"
    expected = {(node, lane["name"], 1): "ok" for node in fleet.nodes for lane in LANES}
    assert restores(run_dir) == expected
    report = (run_dir / "report.md").read_text()
    assert "2 hosts: " in said
    for node in fleet.nodes:
        assert f"| {node} |" in report
        assert (run_dir / "hosts" / f"{node}.html").is_file()


def test_a_node_that_is_lost_takes_no_other_with_it(fleet: Fleet) -> None:
    """The first node of the play, which is also the one that speaks for all."""
    with fleet.begin("bench.yml", gpuckpt_hosts="gpu-nodes", gpuckpt_run_id="lost", gpuckpt_iterations=3) as bench:
        assert bench.stdout is not None
        said = ""
        for line in bench.stdout:
            said += line
            if "iteration 1: first token" in line:
                fleet.nodes["node-a"].stop()
    unreachable = {match[1]: int(match[4]) for match in RECAP.finditer(said)}
    assert unreachable == {"node-a": 1, "node-b": 0}, said[-6000:]
    assert bench.returncode != 0
    run_dir = Path(fleet.variables["gpuckpt_results_dir"]) / "lost"
    kept = restores(run_dir)
    assert {key: status for key, status in kept.items() if key[0] == "node-b"} == {
        ("node-b", lane["name"], iteration): "ok" for lane in LANES for iteration in (1, 2, 3)
    }
    assert "| node-b |" in (run_dir / "report.md").read_text()
    assert "1 of 2 hosts is LOST: node-a" in (run_dir / "report.html").read_text()
