# SPDX-License-Identifier: GPL-3.0-or-later
"""What the doctor tells of servers that are served from golden checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.copies import publish
from ansible.module_utils.ckpt.doctor import CheckContext, store
from ansible.module_utils.ckpt.golden import commit, identity, wanted
from ansible.module_utils.ckpt.golden.commit import Golden
from ansible.module_utils.ckpt.golden.wanted import Wanted
from ansible.module_utils.ckpt.node.inspection import Node


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wanted:
    """A server that is described on this machine, without a checkpoint."""
    monkeypatch.setattr(wanted, "FOLDER", str(tmp_path / "servers"))
    server = {"name": "one", "kind": "reference", "model": "m", "port": 18080, "command": ["/usr/bin/true"]}
    described = Wanted("one", "process", server, str(tmp_path / "golden"))
    described.write()
    return described


def commit_golden(served: Wanted) -> Golden:
    """A commit mark, as `make` writes it, of a folder that holds nothing but a manifest."""
    folder = Path(commit.folder_for(served, "instance"))
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{}")
    golden = Golden("one", "instance", str(folder), identity.of(served), "2026-01-01T00:00:00+00:00", 0.25, 64 << 20)
    commit.save(served, golden)
    return golden


def test_without_a_server_there_is_nothing_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wanted, "FOLDER", str(tmp_path))
    assert store.golden(CheckContext(Node())).state == "skip"


def test_a_server_without_a_checkpoint_is_a_warning(served: Wanted) -> None:
    verdict = store.golden(CheckContext(Node()))
    assert (verdict.state, verdict.detail) == ("warn", "one: there is no golden checkpoint yet")


def test_one_that_fits_is_told_with_its_size_and_trial(served: Wanted) -> None:
    golden = commit_golden(served)
    verdict = store.golden(CheckContext(Node()))
    assert verdict.state == "ok"
    assert verdict.detail.startswith(f"one: 64 MiB in {golden.folder}, ")
    assert verdict.detail.endswith(" old, fits, not served from yet, its trial took 0.25 s")


def test_one_of_another_kernel_is_named(served: Wanted) -> None:
    golden = commit_golden(served)
    mark = Path(commit.home(served)) / commit.NAME
    changed = {**json.loads(mark.read_text()), "identity": {**golden.identity, "kernel": "5.0"}}
    mark.write_text(json.dumps(changed))
    verdict = store.golden(CheckContext(Node()))
    assert verdict.state == "warn"
    assert "does not fit (kernel was 5.0, is " in verdict.detail


def test_what_was_broken_off_is_told(served: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "JOURNALS", str(tmp_path / "journals"))
    assert store.copies(CheckContext(Node())).state == "ok"
    half = Path(commit.home(served)) / ".incoming" / "instance" / "images" / "pages-1.img"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"x" * (3 << 20))
    (tmp_path / "journals").mkdir()
    (tmp_path / "journals" / "one.json").write_text("{}")
    verdict = store.copies(CheckContext(Node()))
    assert verdict.state == "warn"
    assert "one is published in part" in verdict.detail
    assert "one is fetched in part, 3 MiB" in verdict.detail
