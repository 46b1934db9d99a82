# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run has made is noted before it is made, and belongs to nobody once the run has lost the node."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.safety import claim, leftovers
from ansible.module_utils.ckpt.safety.claim import Claim, identify
from ansible.module_utils.ckpt.safety.leftovers import Made
from ansible.module_utils.ckpt.system.commands import Commands
from ansible.module_utils.ckpt.system.files import write_json


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "made"
    monkeypatch.setattr(leftovers, "NOTES", str(folder))
    monkeypatch.setattr(claim, "CLAIM_FILE", str(tmp_path / "claim"))
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint that a run has made, with weights next to it."""
    folder = tmp_path / "store" / "process-store-0a1b2c3d"
    folder.mkdir(parents=True)
    weights = tmp_path / "store" / "weights-1.bin"
    weights.write_bytes(b"w")
    write_json(str(folder / "checkpoint.json"), {"staged": [str(weights)]})
    leftovers.note("run-1", checkpoint=str(folder))
    return folder


def claim_for(run_id: str, pid: int) -> None:
    claim.take(Claim("bench.yml", run_id, time.time(), identify(pid), None, 100))


def test_what_a_run_left_is_found_and_removed(checkpoint: Path, notes: Path) -> None:
    golden = checkpoint.with_name("golden")
    golden.mkdir()
    (found,) = leftovers.find(Commands())
    assert found == Made("run-1", [], [str(checkpoint)])
    leftovers.clear(found, Commands())
    assert [path.name for path in checkpoint.parent.iterdir()] == ["golden"], "weights and checkpoint go, others stay"
    assert list(notes.iterdir()) == []


def test_one_that_was_broken_off_while_it_was_made_is_removed(checkpoint: Path) -> None:
    hidden = checkpoint.with_name(f".{checkpoint.name}.gpuckpt-new")
    checkpoint.rename(hidden)
    (hidden / "checkpoint.json").unlink()
    (hidden / "images").mkdir()
    (found,) = leftovers.find(Commands())
    leftovers.clear(found, Commands())
    assert not hidden.exists()


def test_a_run_that_has_the_node_keeps_what_it_made(checkpoint: Path) -> None:
    claim_for("run-1", os.getpid())
    assert leftovers.find(Commands()) == []


def test_a_run_that_has_lost_the_node_does_not(checkpoint: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        claim_for("run-1", sleeper.pid)
        assert leftovers.find(Commands()) == []
        sleeper.kill()
    assert [made.run_id for made in leftovers.find(Commands())] == ["run-1"]
    claim_for("run-2", os.getpid())
    assert [made.run_id for made in leftovers.find(Commands())] == ["run-1"]


def test_what_a_run_was_told_to_keep_is_no_leftover(checkpoint: Path) -> None:
    leftovers.keep("run-1")
    assert leftovers.find(Commands()) == []
    assert checkpoint.exists()


def test_what_was_removed_is_forgotten(checkpoint: Path, notes: Path) -> None:
    leftovers.note("run-1", server=("process", "a-server"))
    leftovers.forget(checkpoints=[str(checkpoint)])
    assert leftovers.noted() == [Made("run-1", [("process", "a-server")], [])]
    leftovers.forget(("process", "a-server"))
    assert list(notes.iterdir()) == []


def test_what_lies_there_instead_by_now_is_not_touched(checkpoint: Path) -> None:
    (checkpoint / "checkpoint.json").rename(checkpoint / "thesis.txt")
    (found,) = leftovers.find(Commands())
    leftovers.clear(found, Commands())
    assert (checkpoint / "thesis.txt").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"servers": [["podman"]], "checkpoints": []}', '{"servers": 7}'])
def test_a_note_that_cannot_be_read_names_nothing(notes: Path, text: str) -> None:
    notes.mkdir()
    (notes / "run-1.json").write_text(text, encoding="utf-8")
    assert leftovers.find(Commands()) == []


@pytest.mark.parametrize("run_id", ["../../etc/cron.d/x", "", ".hidden", "a\n", "a/b"])
def test_a_run_whose_name_names_no_file_is_refused(run_id: str) -> None:
    with pytest.raises(CkptError, match="run_id"):
        leftovers.note(run_id, checkpoint="/x")


def test_without_a_run_nothing_is_noted(notes: Path) -> None:
    leftovers.note(None, checkpoint="/x")
    assert not notes.exists()
