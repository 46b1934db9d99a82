# SPDX-License-Identifier: GPL-3.0-or-later
"""Wherever a replacement is broken off, one complete checkpoint is left, and the next operation finds it in its place."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.checkpoints import replacement
from ansible.module_utils.ckpt.checkpoints.manifest import Layout, is_complete
from ansible.module_utils.ckpt.errors import CkptError


def make(folder: Path, what: str, complete: bool = True) -> None:
    """A checkpoint's folder whose images say which one it is."""
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "which").write_text(what)
    if complete:
        (folder / "checkpoint.json").write_text("{}")


def found(folder: Path) -> str | None:
    """Which complete checkpoint is in place."""
    return (folder / "images" / "which").read_text() if is_complete(str(folder)) else None


class KilledError(Exception):
    """The process ends here."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Lets a rename be the end: the first, the second …"""
    real: Callable[..., None] = os.rename
    steps = iter(range(1, 100))

    def rename(*paths: str) -> None:
        if next(steps) == step:
            raise KilledError
        real(*paths)

    monkeypatch.setattr(os, "rename", rename)


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("link", [False, True])
def test_killed_while_the_new_one_is_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, link: bool
) -> None:
    place = tmp_path / "golden"
    if link:
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere" / "golden")
    make(place.resolve(), "old")
    make(Path(replacement.begin(Layout(str(place), "store")).folder), "new")
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        # there are two steps; after them only the removal of the old one is left
        with pytest.raises(KilledError) if step < 3 else nullcontext():
            replacement.finish(str(place))
    replacement.heal(str(place))
    assert found(place) == ("old" if step == 1 else "new")
    assert replacement.traces(str(place)) == [str(place.resolve())]


def test_killed_while_the_new_one_is_made(tmp_path: Path) -> None:
    make(tmp_path / "golden", "old")
    make(Path(replacement.begin(Layout(str(tmp_path / "golden"), "store")).folder), "new", complete=False)
    assert len(replacement.traces(str(tmp_path / "golden"))) == 2
    replacement.heal(str(tmp_path / "golden"))
    assert found(tmp_path / "golden") == "old"
    assert os.listdir(tmp_path) == ["golden"]


def test_the_first_checkpoint_is_complete_but_not_in_place(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path / "golden"), "store")
    make(Path(replacement.begin(layout).folder), "new")
    # the log of an earlier dump that failed
    (tmp_path / "golden" / "work").mkdir(parents=True)
    replacement.heal(layout.folder)
    assert found(tmp_path / "golden") == "new"


def test_a_failure_keeps_the_log_and_the_old_one(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path / "golden"), "store")
    make(tmp_path / "golden", "old")
    new = replacement.begin(layout)
    make(Path(new.folder), "new", complete=False)
    os.makedirs(new.work)
    Path(new.work, "dump.log").write_text("why")
    replacement.abandon(layout, "dump.log")
    assert found(tmp_path / "golden") == "old"
    assert Path(layout.work, "dump.log").read_text() == "why"
    assert os.listdir(tmp_path) == ["golden"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    for folder in (tmp_path, tmp_path / "precious"):
        with pytest.raises(CkptError, match="something else than a checkpoint"):
            replacement.require_replaceable(str(folder))
    with pytest.raises(CkptError, match="mount point"):
        replacement.require_replaceable("/proc")
    replacement.require_replaceable(str(tmp_path / "new"))


def test_what_others_share_is_not_freed(tmp_path: Path) -> None:
    make(tmp_path / "golden", "old")
    pages = tmp_path / "golden" / "images" / "pages-1.img"
    pages.write_bytes(os.urandom(1 << 20))
    alone = replacement.freed_bytes(str(tmp_path / "golden"), [os.getpid()])
    assert 1 << 20 <= alone < 2 << 20
    os.link(pages, tmp_path / "mapped-base-1.img")
    assert replacement.freed_bytes(str(tmp_path / "golden"), [os.getpid()]) <= alone - (1 << 20)
    assert replacement.freed_bytes(str(tmp_path / "missing"), []) == 0
