# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests/reach measures by hand: its judgement, and the program that slows one lane."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from project import ROOT

RESULTS = ROOT / "reports" / "published" / "cpu-reach"
PAGE = ROOT / "docs" / "reach.md"


@pytest.fixture(scope="module")
def pairs():
    spec = importlib.util.spec_from_file_location("pairs", ROOT / "tests" / "reach" / "pairs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def comparison(gate, exit_status, slow_down=0.0, **verdicts):
    changes = [{"lane": lane, "verdict": verdict, "could_find": 0.2} for lane, verdict in verdicts.items()]
    return {"what": "comparison", "gate": gate, "slow_down": slow_down, "exit": exit_status, "changes": changes}


def test_both_sides_of_a_pair_have_as_many_runs(pairs):
    order = [pairs.TURNS[number % len(pairs.TURNS)] for number in range(48)]
    for size in (2, 2 * pairs.RUNS_A_SIDE):
        for start in range(0, len(order), size):
            assert order[start : start + size].count("old") == size // 2


def test_the_table_counts_alarms_and_what_was_found(pairs):
    lines = [
        {"what": "run", "noise": "noisy"},
        comparison("rerun", 5, new="cannot tell"),
        comparison("rerun", 0, new="faster"),
        comparison("rerun", 4, new="slower"),
        comparison("runs", 4, 0.1, old="no change", new="slower"),
        comparison("runs", 4, 0.1, old="slower", new="slower"),
        comparison("runs", 5, 0.1, old="no change", new="cannot tell"),
    ]
    assert pairs.table(lines).rows == [
        ["rerun", "–", "3", "1", "–", "1", "1", "1", "20%"],
        ["runs", "10%", "3", "2", "1", "0", "1", "0", "20%"],
    ]
    assert pairs.summary(lines).endswith("1 runs: 1 noisy.")


def test_only_restores_of_the_new_lane_sleep(pairs, tmp_path, monkeypatch):
    program, delay, slept = tmp_path / "criu", tmp_path / "delay", tmp_path / "slept"
    monkeypatch.setattr(pairs, "SLOWED", pairs.SLOWED.replace(str(pairs.DELAY), str(delay)))
    monkeypatch.setattr(pairs, "BUILD", program)
    monkeypatch.setattr(pairs, "DELAY", delay)
    program.write_text('#!/bin/sh\necho "real $1"\n')
    program.chmod(0o755)
    sleep = tmp_path / "sleep"
    sleep.write_text(f'#!/bin/sh\necho "$1" >>{slept}\n')
    sleep.chmod(0o755)
    pairs.slow_the_build()
    runs = [{"delay_s": 0.0, "values_s": {"new": [3.0, 4.0, 5.0]}}, {"delay_s": 1.0, "values_s": {"new": [9.0]}}]
    assert pairs.set_delay(runs, 0.1) == 0.4

    def call(lane, command):
        environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CRIU_REACH_LANE": lane}
        done = subprocess.run([program, command], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == f"real {command}\n"

    for lane, command in (("new", "restore"), ("old", "restore"), ("new", "dump")):
        call(lane, command)
    assert pairs.set_delay(runs, 0.0) == 0.0
    call("new", "restore")
    assert slept.read_text().split() == ["0.4", "0", "0.0"]


def test_it_measures_on_a_node_of_its_own_alone(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "GPUCKPT_OWN_NODE"}
    command = [sys.executable, str(ROOT / "tests/reach/pairs.py"), "--out", str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "a node of its own" in done.stderr


def test_the_page_says_what_was_measured(pairs):
    text = PAGE.read_text(encoding="utf-8")
    for file in sorted(RESULTS.glob("*.jsonl")):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert pairs.summary(lines, markdown=True) in text
