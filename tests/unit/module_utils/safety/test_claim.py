# SPDX-License-Identifier: GPL-3.0-or-later
"""A node belongs to one play at a time: who is refused, who may take it, and what becomes of a claim. Processes are real."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.safety import claim
from ansible.module_utils.ckpt.safety.claim import Claim, Known, NodeTakenError, Process, identify

SILENCE_S = 100


@pytest.fixture(autouse=True)
def claim_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "claim"
    monkeypatch.setattr(claim, "CLAIM_FILE", str(path))
    return path


@pytest.fixture
def other() -> Iterator[Process]:
    """Another process of this machine, which runs."""
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        yield identify(sleeper.pid)
        sleeper.kill()


def mine(run_id: str | None = "mine", **changes: object) -> Claim:
    return replace(Claim("bench.yml", run_id, time.time(), identify(os.getpid()), None, SILENCE_S), **changes)  # type: ignore[arg-type]


def elsewhere(pid: int = 1) -> Process:
    """A process of a machine that is not here."""
    return Process("laptop", "another boot", "pid:[1]", pid, 5)


def ended() -> Process:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        process = identify(sleeper.pid)
        sleeper.kill()
    return process


def test_it_is_refused_while_the_other_runs_and_free_when_that_gave_it_up(claim_file: Path, other: Process) -> None:
    assert claim.take(mine("theirs", holder=other)) is None
    before = claim_file.read_bytes()
    with pytest.raises(NodeTakenError) as refused:
        claim.take(mine())
    for word in (
        "bench.yml (run theirs) since 20",
        f"process {other.pid} on {os.uname().nodename}",
        "Wait until it ends",
    ):
        assert word in refused.value.message
    claim.release(mine().holder)
    assert claim_file.read_bytes() == before, "somebody else's claim was given up"
    claim.release(other)
    assert not claim_file.exists()
    assert claim.take(mine()) is None


def test_nothing_overrules_a_play_that_runs(other: Process) -> None:
    claim.take(mine("mine", holder=other, since=0.0))
    with pytest.raises(NodeTakenError):
        claim.take(mine(), insist=True, continued=True)


def test_the_same_play_claims_anew(claim_file: Path) -> None:
    claim.take(mine(None, by="provision.yml"))
    assert claim.take(mine()) is None
    assert json.loads(claim_file.read_text())["by"] == "bench.yml"


def test_the_claim_of_an_ended_process_is_void_at_once() -> None:
    claim.take(mine("theirs", holder=ended()))
    former = claim.take(mine())
    assert former is not None
    assert former.run_id == "theirs"


def test_a_number_that_was_used_again_is_another_process(other: Process) -> None:
    claim.take(mine("theirs", holder=replace(other, starttime=other.starttime - 1)))
    assert claim.take(mine()) is not None


def test_a_zombie_has_ended() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    process = identify(sleeper.pid)
    assert process.lives() is True
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert process.lives() is False
    sleeper.wait()


def test_of_a_play_from_elsewhere_only_silence_tells(tmp_path: Path) -> None:
    signs = tmp_path / "records"
    old = time.time() - SILENCE_S - 1
    claim.take(mine("theirs", holder=elsewhere(), since=time.time() - SILENCE_S + 20))
    with pytest.raises(NodeTakenError, match="last sign of life was 8"):
        claim.take(mine())
    claim.release(elsewhere())

    claim.take(mine("theirs", holder=elsewhere(), since=old, signs=str(signs)))
    signs.mkdir()
    with pytest.raises(NodeTakenError, match="last sign of life was 0 s ago"):
        claim.take(mine())
    os.utime(signs, (old, old))
    assert claim.take(mine()) is not None


@pytest.mark.parametrize(
    ("run_id", "options", "taken"),
    [
        ("theirs", {}, False),
        ("theirs", {"continued": True}, True),
        ("mine", {"continued": True}, False),
        ("mine", {"insist": True}, True),
    ],
)
def test_it_can_be_taken_by_continuing_or_by_insisting(run_id: str, options: dict[str, bool], taken: bool) -> None:
    claim.take(mine("theirs", holder=elsewhere()))
    if taken:
        assert claim.take(mine(run_id), **options) is not None
        return
    with pytest.raises(NodeTakenError) as refused:
        claim.take(mine(run_id), **options)
    assert "-e gpuckpt_run_id=theirs -e gpuckpt_continue=true" in refused.value.message
    assert "-e gpuckpt_take_over=true" in refused.value.message


def test_the_controller_decides_on_its_own_processes() -> None:
    """Both plays come from another machine, the same one: it is asked before insisting, and its word counts."""
    held = mine("theirs", holder=elsewhere(1))
    wanted = mine(holder=elsewhere(2))
    claim.take(held)
    with pytest.raises(NodeTakenError) as asked:
        claim.take(wanted, insist=True)
    assert not asked.value.known
    with pytest.raises(NodeTakenError) as refused:
        claim.take(wanted, Known(held.holder, True), insist=True)
    assert refused.value.known
    with pytest.raises(NodeTakenError):
        claim.take(wanted, Known(elsewhere(3), False))
    assert claim.take(wanted, Known(held.holder, False)) == held


def test_to_look_changes_nothing(claim_file: Path, other: Process) -> None:
    assert claim.take(mine(), write=False) is None
    assert not claim_file.exists()
    claim.take(mine("theirs", holder=other))
    before = claim_file.read_bytes()
    with pytest.raises(NodeTakenError):
        claim.take(mine(), write=False)
    assert claim_file.read_bytes() == before


def test_a_run_whose_node_was_taken_measures_no_more(other: Process) -> None:
    claim.guard("mine")
    claim.take(mine())
    claim.guard("mine")
    claim.release(mine().holder)
    claim.take(mine("theirs", holder=other))
    with pytest.raises(CkptError, match="run theirs") as refused:
        claim.guard("mine")
    assert refused.value.reason == "node_taken"


def test_a_void_claim_keeps_nobody_from_measuring() -> None:
    claim.take(mine("theirs", holder=ended()))
    claim.guard("mine")
    claim.take(mine("theirs", holder=elsewhere(), since=time.time() - SILENCE_S - 1))
    claim.guard("mine")
    claim.take(mine("theirs", holder=elsewhere()), insist=True)
    with pytest.raises(CkptError, match="run theirs"):
        claim.guard("mine")


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"by": "bench.yml"}', '{"holder": 7}'])
def test_a_claim_that_cannot_be_read_is_named(claim_file: Path, text: str) -> None:
    claim_file.write_text(text)
    with pytest.raises(CkptError, match="remove it") as refused:
        claim.take(mine())
    assert str(claim_file) in refused.value.message


def try_to_take(number: int, won: multiprocessing.Queue[int]) -> None:
    try:
        claim.take(mine(str(number)))
    except NodeTakenError:
        return
    won.put(number)
    time.sleep(30)


def test_of_many_at_once_one_gets_it() -> None:
    fork = multiprocessing.get_context("fork")
    for _ in range(5):
        won: multiprocessing.Queue[int] = fork.Queue()
        crowd = [fork.Process(target=try_to_take, args=(number, won)) for number in range(8)]
        for process in crowd:
            process.start()
        try:
            first = won.get(timeout=20)
            losers = [process for number, process in enumerate(crowd) if number != first]
            for process in losers:
                process.join(timeout=20)
            assert [process.exitcode for process in losers] == [0] * 7
            assert won.empty()
        finally:
            for process in crowd:
                process.kill()
                process.join()


def test_two_names_of_one_node_are_refused_and_the_first_keeps_it(claim_file: Path) -> None:
    claim.take(mine(node="node-a"))
    assert claim.take(mine(node="node-a")) is None
    with pytest.raises(CkptError, match="node-b and node-a are one machine") as refused:
        claim.take(mine(node="node-b"))
    assert refused.value.reason == "bad_input"
    claim.release(mine().holder, "node-b")
    assert claim_file.exists(), "the refused name gave up the other's claim"
    claim.release(mine().holder, "node-a")
    assert not claim_file.exists()


def test_a_claim_that_an_older_version_wrote_names_no_node() -> None:
    old = mine().as_dict()
    del old["node"]
    assert claim.parse_claim(old).node == ""
