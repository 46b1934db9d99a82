# SPDX-License-Identifier: GPL-3.0-or-later
"""Serving under a systemd that is the first process: units, a reboot, a shutdown. Half an hour; `make test-vm`."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from machine import SCRATCH, Machine, booted

pytestmark = pytest.mark.vm
SERVICE = "gpuckpt-serve@reference.service"
SETTINGS = {
    "gpuckpt_podman": False,
    "gpuckpt_llama_cpp": False,
    "inference_server_runtime": "process",
    "gpuckpt_weights_mib": 64,
    "checkpoint_store_workload_mib": 64,
    "checkpoint_store_size_mib": 512,
    "serve_idle_s": 20,
}
VARIABLES = ("--extra-vars", json.dumps(SETTINGS))
BODY = json.dumps({"model": "gpuckpt-reference", "prompt": "The quick brown fox", "max_tokens": 8, "temperature": 0})
ASK = f"curl -sS --fail -m 300 -H 'Content-Type: application/json' -d '{BODY}' http://127.0.0.1:{{port}}/v1/completions"
LIMIT_S = 300
# that ask at once while it wakes
CLIENTS = 20


@pytest.fixture(scope="module")
def vm() -> Iterator[Machine]:
    """A machine that provision.yml has prepared."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs qemu: apt-get install --no-install-recommends qemu-system-x86")
    with booted(SCRATCH) as machine:
        machine.play("provision.yml", *VARIABLES)
        yield machine


def status(vm: Machine) -> dict[str, Any]:
    return dict(json.loads(vm.run("/opt/gpuckpt/serve/bin/gpuckpt-serve --status reference"))[0])


def until(vm: Machine, command: str, said: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while (now := vm.run(command, check=False)) != said:
        assert time.monotonic() < deadline, f"{command} says {now}; {vm.run('journalctl -b --no-pager | tail -40')}"
        time.sleep(2)


def answer(vm: Machine, port: int) -> str:
    return str(json.loads(vm.run(ASK.format(port=port)))["choices"][0]["text"])


def test_a_service_that_is_restored_again_after_a_restart_and_a_reboot(vm: Machine) -> None:
    vm.play("serve.yml", *VARIABLES)
    assert vm.run(f"systemctl is-active {SERVICE}") == "active"
    assert status(vm)["serving"]["mode"] == "restored"
    before = answer(vm, 18080)
    vm.run(f"systemctl restart {SERVICE}")
    assert status(vm)["serving"]["mode"] == "restored"
    vm.reboot()
    until(vm, f"systemctl is-active {SERVICE}", "active")
    # a process number may be in use after a reboot; then it is cold, and says so
    serving = status(vm)["serving"]
    assert serving["mode"] == "restored" or "process number" in serving["why"][0]
    assert answer(vm, 18080) == before
    assert "reference was" in vm.run(f"systemctl show -p StatusText --value {SERVICE}")


def test_a_server_that_ends_is_started_again(vm: Machine) -> None:
    vm.run("pkill -KILL -f [g]puckpt_reference_server")
    until(vm, f"systemctl show -p NRestarts --value {SERVICE}", "1")
    until(vm, f"systemctl is-active {SERVICE}", "active")
    assert answer(vm, 18080)


def test_a_shutdown_does_not_wait_for_a_new_checkpoint(vm: Machine) -> None:
    mark = "/var/lib/gpuckpt/golden/reference/golden.json"
    vm.run(f"systemctl stop {SERVICE}")
    vm.run(f"""sed -i 's/"kernel": "[^"]*"/"kernel": "5.0.0-of-another-node"/' {mark}""")
    vm.run(f"systemctl start {SERVICE}")
    serving = status(vm)["serving"]
    assert (serving["mode"], serving["renew"]) == ("cold", True)
    vm.reboot()
    said = vm.run("journalctl -b -1 --no-pager -t gpuckpt-reference")
    assert "was started cold" in said
    assert "a new golden checkpoint" not in said
    assert "5.0.0-of-another-node" in vm.run(f"cat {mark}"), "the one that was there is as it was"
    # stopped while the machine goes on, it is made
    until(vm, f"systemctl is-active {SERVICE}", "active")
    vm.run(f"systemctl stop {SERVICE}")
    assert "a new golden checkpoint" in vm.run("journalctl -b --no-pager -t gpuckpt-reference")
    assert status(vm)["misfits"] == []


def test_the_first_request_starts_the_server_and_after_a_reboot_too(vm: Machine) -> None:
    vm.play("serve.yml", *VARIABLES, "--extra-vars", "serve_on_demand=true")
    for _ in range(2):
        assert vm.run(f"systemctl is-active {SERVICE}", check=False) == "inactive"
        asked = " & ".join([f"{ASK.format(port=19080)} -o /tmp/answer-{number}" for number in range(CLIENTS)])
        vm.run(f"{asked} & wait")
        answers = [json.loads(vm.run(f"cat /tmp/answer-{number}")) for number in range(CLIENTS)]
        assert len({one["choices"][0]["text"] for one in answers}) == 1
        assert len({one["id"] for one in answers}) == CLIENTS
        assert status(vm)["history"]["restored"] > 0
        until(vm, f"systemctl is-active {SERVICE}", "inactive")
        vm.reboot()
        until(vm, "systemctl is-active gpuckpt-reference.socket", "active")


def test_nothing_is_left_of_it(vm: Machine) -> None:
    vm.play("forget.yml", *VARIABLES)
    assert vm.run("ls /etc/systemd/system | grep gpuckpt-reference", check=False) == ""
    assert vm.run("systemctl --failed --no-legend | grep gpuckpt", check=False) == ""
    vm.play("rollback.yml", *VARIABLES)
    assert vm.run("ls -d /opt/gpuckpt /etc/gpuckpt /var/lib/gpuckpt/golden 2>/dev/null", check=False) == ""
