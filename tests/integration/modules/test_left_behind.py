# SPDX-License-Identifier: GPL-3.0-or-later
"""What a benchmark that was broken off leaves running is stopped by name and proof, and nothing else is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import STOCK, Call, Result, identity, tried_by_ci

pytestmark = pytest.mark.integration
INSTANCES = Path("/run/gpuckpt/instances")


@pytest.fixture
def left(call: Call, server: Result) -> Iterator[Result]:
    """Options for a server that is named as a benchmark would name it."""
    options = {**server, "server": {**server["server"], "name": f"{server['server']['name']}-lane"}}
    yield options
    call("ckpt_stop", **options)


def listens(options: Result) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", options["server"]["port"])) == 0


def test_it_is_stopped_and_named(call: Call, server: Result, left: Result) -> None:
    call("ckpt_start", **left)
    found = call("ckpt_stop", **server, left_behind=True, _ansible_check_mode=True)
    assert (found["stopped"], found["changed"], listens(left)) == ([left["server"]["name"]], True, True)
    done = call("ckpt_stop", **server, left_behind=True)
    assert (done["stopped"], done["changed"], listens(left)) == ([left["server"]["name"]], True, False)
    again = call("ckpt_stop", **server, left_behind=True)
    assert (again["stopped"], again["changed"]) == ([], False)
    assert call("ckpt_start", **left, stop_after=True)["record"]["status"] == "ok"


def test_servers_of_other_names_go_on(call: Call, server: Result) -> None:
    call("ckpt_start", **server)
    for name in (server["server"]["name"], server["server"]["name"][:-1]):
        asked = {**server, "server": {**server["server"], "name": name}}
        assert call("ckpt_stop", **asked, left_behind=True)["stopped"] == []
    assert listens(server)


@tried_by_ci("podman")
def test_what_a_checkpoint_is_restored_into_stays(call: Call, server: Result, left: Result, store: Path) -> None:
    checkpoint = {"dir": str(store / "golden")}
    restore = {
        **left,
        "criu": STOCK,
        "checkpoint": checkpoint,
        "flags": ["--keep"] if left["runtime"] == "podman" else [],
    }
    call("ckpt_start", **left)
    call("ckpt_checkpoint", **left, criu=STOCK, checkpoint=checkpoint)
    assert call("ckpt_stop", **server, left_behind=True)["stopped"] == [], "it does not run"
    call("ckpt_restore", **restore)
    assert call("ckpt_stop", **server, left_behind=True)["stopped"] == [left["server"]["name"]]
    assert call("ckpt_restore", **restore, stop_after=True)["record"]["status"] == "ok"


def test_a_process_that_has_the_number_of_an_ended_server_is_left_alone(call: Call, process_server: Result) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    state = INSTANCES / f"{process_server['server']['name']}-ended.json"
    INSTANCES.mkdir(parents=True, exist_ok=True)
    state.write_text(json.dumps({"pid": sleeper.pid, "starttime": 1}))
    try:
        assert call("ckpt_stop", **process_server, left_behind=True)["stopped"] == []
        os.kill(sleeper.pid, 0)
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()
        state.unlink()


def test_a_container_without_our_label_is_left_alone(call: Call, podman_server: Result) -> None:
    name = f"{podman_server['server']['name']}-foreign"
    run = [
        "podman",
        "run",
        "--detach",
        "--network=host",
        "--name",
        name,
        podman_server["server"]["image"],
        "sleep",
        "60",
    ]
    subprocess.run(run, check=True, capture_output=True)
    try:
        assert call("ckpt_stop", **podman_server, left_behind=True)["stopped"] == []
        states = subprocess.run(["podman", "ps", "--format", "{{.Names}}"], check=True, capture_output=True, text=True)
        assert name in states.stdout.split()
    finally:
        subprocess.run(["podman", "rm", "--force", "--time=0", name], check=True, capture_output=True)


@tried_by_ci("process")
def test_what_a_broken_off_run_made_is_removed_and_what_a_user_made_is_not(
    call: Call, server: Result, left: Result, store: Path
) -> None:
    run = {**identity("lane"), "run_id": f"left-{left['server']['port']}"}
    golden, of_run = store / "golden", store / "of-run"
    call("ckpt_start", **left, record=run)
    call("ckpt_checkpoint", **left, criu=STOCK, checkpoint={"dir": str(golden)}, leave_running=True)
    call("ckpt_checkpoint", **left, criu=STOCK, checkpoint={"dir": str(of_run)}, leave_running=True, record=run)
    # as one that was broken off before its end
    (of_run / "checkpoint.json").unlink()
    expected = {
        "run_id": run["run_id"],
        "servers": [[left["runtime"], left["server"]["name"]]],
        "checkpoints": [str(of_run)],
    }
    assert expected in call("ckpt_leftovers", _ansible_check_mode=True)["found"]
    assert of_run.exists()
    done = call("ckpt_leftovers")
    assert expected in done["found"]
    assert not of_run.exists()
    assert (golden / "checkpoint.json").exists()
    assert not listens(left)
    assert call("ckpt_stop", **left)["changed"] is False
    assert call("ckpt_leftovers")["found"] == []
