# SPDX-License-Identifier: GPL-3.0-or-later
"""Three nodes over ssh: a golden checkpoint is made on one, and served on all that it fits. The other one says why not.

The nodes are those of test_fleet.py. Each has a loopback of its own, and there an SFTP server for the one folder of copies. The
third node says that it has another driver.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plays import WEIGHTS_MIB, play
from test_fleet import Fleet, Node, ssh_variables, start_node

sys.path.insert(0, str(Path(__file__).parent / "copies"))

from places import PASSWORD, USER, obscured

pytestmark = pytest.mark.integration
NAME = "reference"
PROGRAM = "/opt/gpuckpt/serve/bin/gpuckpt-serve"
NODES = ("node-a", "node-b", "node-c")
PORT = 2022
LIMIT_S = 60
OTHER_DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  590.44.01  Release Build"


@pytest.fixture(scope="module")
def fleet(bundle_of_criu: Path, bare_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three nodes with CRIU from a bundle, and no container runtime."""
    for program in ("ssh", "rclone"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: run `make deps`")
    folder = tmp_path_factory.mktemp("copies")
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public_key = key.with_suffix(".pub").read_text().strip()
    nodes: dict[str, Node] = {}
    servers: list[subprocess.Popen[bytes]] = []
    (folder / "remote").mkdir()
    configuration = folder / "rclone.conf"
    configuration.write_text(
        f"[there]\ntype = sftp\nhost = 127.0.0.1\nport = {PORT}\nuser = {USER}\npass = {obscured(PASSWORD)}\nshell_type = none\n"
    )
    try:
        for name in NODES:
            nodes[name] = start_node(bare_root, folder / name, public_key)
            # the folder is this machine's, the network the node's
            words = [
                "rclone",
                "--config=",
                "serve",
                "sftp",
                folder / "remote",
                f"--addr=127.0.0.1:{PORT}",
                f"--user={USER}",
            ]
            command = ["nsenter", f"--target={nodes[name].init}", "--net", "--", *words, f"--pass={PASSWORD}"]
            environment = {**os.environ, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
            servers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment))
        driver = f"mount -t tmpfs none /proc/driver && mkdir /proc/driver/nvidia && echo '{OTHER_DRIVER}' >/proc/driver/nvidia/version"
        subprocess.run(nodes["node-c"].inside("sh", "-c", driver), check=True)
        inventory = {
            "all": {
                "vars": ssh_variables(key),
                "hosts": {name: {"node_init": node.init} for name, node in nodes.items()},
            }
        }
        (folder / "hosts.json").write_text(json.dumps(inventory))
        variables = {
            "gpuckpt_bundle": str(bundle_of_criu),
            "gpuckpt_podman": False,
            "gpuckpt_weights_mib": WEIGHTS_MIB,
            "inference_server_runtime": "process",
            "checkpoint_store_size_mib": 1024,
            "criu_distro": False,
            "copies_rclone": "there:golden",
            "copies_credentials_src": str(configuration),
            # these nodes have no package mirror
            "copies_install": False,
            "copies_part_mib": 16,
        }
        made = Fleet(nodes, folder / "hosts.json", variables)
        made.play("provision.yml")
        yield made
    finally:
        for server in servers:
            server.kill()
            server.wait()
        for node in nodes.values():
            node.stop()


def status(node: Node) -> dict[str, Any]:
    done = subprocess.run(node.inside(PROGRAM, "--status", NAME), check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout)[0])


def served(node: Node, log: Path) -> dict[str, Any]:
    """How the server comes up on a node; it is stopped again."""
    with (
        log.open("ab") as out,
        subprocess.Popen(node.inside(PROGRAM, NAME), stdin=subprocess.DEVNULL, stderr=out) as process,
    ):
        deadline = time.monotonic() + LIMIT_S
        while process.poll() is None and status(node)["serving"] is None and time.monotonic() < deadline:
            time.sleep(0.1)
        found = status(node)["serving"]
        # nsenter has forked: the program is its child
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), 15)
        process.wait(LIMIT_S)
    assert found is not None, log.read_text()
    return dict(found)


def test_made_on_one_and_served_on_all_that_it_fits(fleet: Fleet, tmp_path: Path) -> None:
    fleet.play("checkpoint.yml", "-l", "node-a")
    said = fleet.play("publish.yml", "-l", "node-a")
    assert "reference is published as 000001-" in said
    again = fleet.play("publish.yml", "-l", "node-a")
    assert "0 MiB were sent" in again

    fetched = play("fetch.yml", "-i", str(fleet.inventory), check=False, **fleet.variables)
    assert fetched.status != 0, "one node does not get it"
    text = " ".join(fetched.output.split())
    assert "driver was none, is 590.44.01" in text
    assert PASSWORD not in text
    assert "failed=1" in next(
        line for line in fetched.output.splitlines() if line.startswith("node-c") and "failed=" in line
    )
    for name in ("node-a", "node-b"):
        assert "failed=0" in next(
            line for line in fetched.output.splitlines() if line.startswith(name) and "failed=" in line
        )
    fleet.play("fetch.yml", "-l", "node-a,node-b")

    fleet.play("serve.yml", serve_phases=["validate", "install", "configure"])
    for name in ("node-a", "node-b"):
        serving = served(fleet.nodes[name], tmp_path / name)
        assert serving["mode"] == "restored", (name, serving)
    cold = served(fleet.nodes["node-c"], tmp_path / "node-c")
    assert (cold["mode"], cold["why"]) == ("cold", ["there is no golden checkpoint yet"])

    gone = fleet.play("forget.yml", copies_forget_published=True)
    assert "failed=0" in gone
    folder = fleet.inventory.parent / "remote" / "golden" / NAME
    assert [path for path in folder.rglob("*") if path.is_file()] == []
