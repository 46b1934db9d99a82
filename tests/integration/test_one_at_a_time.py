# SPDX-License-Identifier: GPL-3.0-or-later
"""Two plays at once on one node: the second is refused, the first does not notice, and nothing stays of either."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plays import ANSIBLE_PLAYBOOK, ROOT, WEIGHTS_MIB, play, records

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("provisioned")]

RUN_ID = f"integration-one-{os.getpid()}"
OTHER = f"{RUN_ID}-other"
ON_NODE = Path("/var/lib/gpuckpt/runs")
CLAIM = Path("/run/gpuckpt.claim")
ITERATIONS = 25
# what stops leftovers, in a play of the user's own
ROLE_ALONE = """
- hosts: localhost
  gather_facts: false
  become: true
  tasks:
    - include_role: {name: inference_server, tasks_from: spec}
    - include_role: {name: inference_server, tasks_from: left_behind}
"""
SETTINGS: dict[str, Any] = {
    "gpuckpt_weights_mib": WEIGHTS_MIB,
    "gpuckpt_lanes": [{"name": "process-stock", "start": "restore", "runtime": "process", "build": "stock"}],
    "gpuckpt_iterations": ITERATIONS,
    "gpuckpt_warmup_rounds": 0,
    "gpuckpt_warmup_requests": 1,
}


@pytest.fixture
def first(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A benchmark that has begun to measure."""
    settings = {**SETTINGS, "gpuckpt_run_id": RUN_ID, "gpuckpt_results_dir": str(tmp_path)}
    command = [ANSIBLE_PLAYBOOK, "bench.yml", "--extra-vars", json.dumps(settings)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert any("Restore: process-stock, iteration 1" in line for line in process.stdout)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            process.stdout.read()
    for run_id in (RUN_ID, OTHER):
        shutil.rmtree(ON_NODE / run_id, ignore_errors=True)


def test_the_second_is_refused_and_the_first_measures_on(first: subprocess.Popen[str], tmp_path: Path) -> None:
    here = {**SETTINGS, "gpuckpt_results_dir": str(tmp_path)}
    page = tmp_path / "own.yml"
    page.write_text(ROLE_ALONE, encoding="utf-8")
    # what the second ones are, the last of them the first one's own run
    plays = [
        (str(page), {"gpuckpt_weights_mib": WEIGHTS_MIB}),
        ("bench.yml", {**here, "gpuckpt_run_id": OTHER, "gpuckpt_take_over": True}),
        ("provision.yml", {"gpuckpt_weights_mib": WEIGHTS_MIB}),
        ("rollback.yml", {}),
        ("bench.yml", {**here, "gpuckpt_run_id": RUN_ID, "gpuckpt_continue": True}),
    ]
    for playbook, variables in plays:
        began = time.monotonic()
        refused = play(playbook, check=False, **variables)
        said = " ".join(refused.output.split())
        assert refused.status != 0, said[-2000:]
        assert f"this node is in use: bench.yml (run {RUN_ID}) since " in said
        assert f"process {first.pid} on " in said
        assert "Nothing was changed here. Wait until it ends" in said
        assert refused.changed == 0
        assert time.monotonic() - began < 20
    assert first.poll() is None, "the first one ended too early to tell anything"
    assert not (tmp_path / OTHER).exists()
    assert not (ON_NODE / OTHER).exists()

    assert first.stdout is not None
    rest = first.stdout.read()
    assert first.wait() == 0, rest[-3000:]
    restores = [record for record in records(tmp_path / RUN_ID) if record["kind"] == "restore"]
    assert [record["message"] for record in restores if record["status"] != "ok"] == []
    assert len(restores) == ITERATIONS
    assert not CLAIM.exists()


def test_a_play_that_fails_gives_the_node_up(tmp_path: Path) -> None:
    settings = {**SETTINGS, "gpuckpt_run_id": OTHER, "gpuckpt_results_dir": str(tmp_path)}
    failed = play("bench.yml", check=False, **settings, checkpoint_bench_store_path=str(tmp_path))
    assert "is not mounted" in failed.output
    assert not CLAIM.exists()
    failed = play("provision.yml", check=False, gpuckpt_bundle=str(tmp_path / "none"))
    assert failed.status != 0
    assert not CLAIM.exists()


PLAY = """
- hosts: all
  gather_facts: false
  become: true
  tasks:
    - ckpt_claim: {by: "a test", run_id: "{{ run_id }}", take_over: "{{ take_over }}"}
    - wait_for: {timeout: "{{ stay_s }}"}
    - ckpt_claim: {state: released}
"""


def test_the_controller_tells_of_its_plays_what_a_node_cannot_see(tmp_path: Path) -> None:
    """The module runs in a PID namespace of its own, as on another machine: it sees neither play."""
    page, python = tmp_path / "play.yml", tmp_path / "python3"
    page.write_text(PLAY, encoding="utf-8")
    python.write_text('#!/bin/sh\nexec unshare --pid --fork --mount-proc /usr/bin/python3 "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    node = {"ansible_connection": "local", "ansible_python_interpreter": str(python), "take_over": True}
    arguments = (str(page), "--inventory", "node,")
    command = [ANSIBLE_PLAYBOOK, *arguments, "--extra-vars", json.dumps({**node, "run_id": "first", "stay_s": 120})]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True) as holder:
        try:
            deadline = time.monotonic() + 30
            while not CLAIM.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            refused = play(*arguments, check=False, **node, run_id="second", stay_s=0)
            assert refused.status != 0
            assert "a test (run first) since " in " ".join(refused.output.split())
            assert f"process {holder.pid} on {os.uname().nodename}, which runs." in " ".join(refused.output.split())
        finally:
            os.killpg(holder.pid, signal.SIGKILL)
    taken = play(*arguments, **{**node, "take_over": False}, run_id="second", stay_s=0)
    assert "The node was claimed by a test (run first)" in " ".join(taken.output.split())
    assert not CLAIM.exists()


# a claim whose play was killed is taken over in the test above, too
@pytest.mark.long
def test_a_play_that_was_killed_is_no_hindrance(first: subprocess.Popen[str], tmp_path: Path) -> None:
    os.killpg(first.pid, signal.SIGKILL)
    assert first.stdout is not None
    first.stdout.read()
    first.wait()
    assert json.loads(CLAIM.read_text())["run_id"] == RUN_ID
    done = play(
        "bench.yml",
        **{
            **SETTINGS,
            "gpuckpt_run_id": RUN_ID,
            "gpuckpt_results_dir": str(tmp_path),
            "gpuckpt_continue": True,
            "gpuckpt_iterations": 4,
        },
    )
    assert f"bench.yml (run {RUN_ID}) since " in " ".join(done.output.split())
    found = [record for record in records(tmp_path / RUN_ID) if record["kind"] == "restore"]
    assert {record["status"] for record in found} == {"ok"}
    assert len(found) >= 4
    assert not CLAIM.exists()
