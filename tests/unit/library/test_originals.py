# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role replaces is remembered once and put back; real files in a folder of the test's own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ckpt_originals
import pytest
from ansible.module_utils.testing import patch_module_args


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A folder with a file, a link, and nothing at `etc/gpuckpt/new`."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/file").write_text("the administrator's\n")
    (tmp_path / "etc/file").chmod(0o640)
    (tmp_path / "etc/link").symlink_to("/opt/theirs")
    return tmp_path


@pytest.fixture
def originals(node: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the module as Ansible does, on the folder; returns its result."""

    def run(state: str, *names: str, check: bool = False) -> dict[str, Any]:
        arguments = {
            "name": "role",
            "state": state,
            "folder": str(node / "rollback"),
            "paths": [str(node / name) for name in names],
            "_ansible_check_mode": check,
        }
        with patch_module_args(arguments), pytest.raises(SystemExit):
            ckpt_originals.main()
        return json.loads(capsys.readouterr().out)

    return run


PATHS = ("etc/file", "etc/link", "etc/gpuckpt/new")


def state(node: Path) -> dict[str, Any]:
    """Contents, mode and target of all that lies below the folder."""
    return {
        str(path.relative_to(node)): (
            os.readlink(path) if path.is_symlink() else path.stat().st_mode,
            path.read_text() if path.is_file() else None,
        )
        for path in sorted(node.rglob("*"))
    }


def provision(node: Path) -> None:
    """What a role does after it remembered."""
    (node / "etc/file").write_text("ours\n")
    (node / "etc/file").chmod(0o600)
    (node / "etc/link").unlink()
    (node / "etc/link").write_text("a file where the link was\n")
    (node / "etc/gpuckpt").mkdir()
    (node / "etc/gpuckpt/new").symlink_to("/opt/ours")


def test_a_rollback_brings_back_file_link_and_absence(node: Path, originals: Any) -> None:
    before = state(node)
    assert originals("saved", *PATHS)["changed"]
    provision(node)
    result = originals("restored")
    assert sorted(result["restored"]) == sorted(str(node / name) for name in PATHS)
    assert (node / "rollback").rmdir() is None  # empty: the record is forgotten
    assert state(node) == before


def test_the_first_state_counts_however_often_it_is_saved(node: Path, originals: Any) -> None:
    before = state(node)
    originals("saved", *PATHS)
    provision(node)
    assert not originals("saved", *PATHS)["changed"]
    originals("restored")
    (node / "rollback").rmdir()
    assert state(node) == before


def test_a_path_that_joins_later_is_remembered_too(node: Path, originals: Any) -> None:
    originals("saved", "etc/file")
    result = originals("saved", "etc/file", "etc/link")
    assert result["changed"]
    assert result["paths"][str(node / "etc/link")] == "link to /opt/theirs"


def test_a_file_with_other_contents_but_the_same_size_is_put_back(node: Path, originals: Any) -> None:
    originals("saved", "etc/file")
    text = (node / "etc/file").read_text()
    (node / "etc/file").write_text(text.swapcase())
    originals("restored")
    assert (node / "etc/file").read_text() == text


def test_a_new_folder_stays_while_something_else_lies_in_it(node: Path, originals: Any) -> None:
    originals("saved", *PATHS)
    provision(node)
    (node / "etc/gpuckpt/theirs").write_text("kept\n")
    originals("restored")
    assert os.listdir(node / "etc/gpuckpt") == ["theirs"]


def test_the_record_is_for_root_alone(node: Path, originals: Any) -> None:
    originals("saved", *PATHS)
    assert (node / "rollback").stat().st_mode & 0o777 == 0o700
    assert (node / "rollback/role.json").stat().st_mode & 0o777 == 0o600


def test_check_mode_tells_and_changes_nothing(node: Path, originals: Any) -> None:
    before = state(node)
    assert originals("saved", *PATHS, check=True)["changed"]
    assert state(node) == before
    originals("saved", *PATHS)
    provision(node)
    before = state(node)
    result = originals("restored", check=True)
    assert result["changed"]
    assert f"{node}/etc/gpuckpt/new: absent" in result["diff"]["after"]
    assert state(node) == before


def test_nothing_to_put_back_is_no_change(originals: Any) -> None:
    assert not originals("restored")["changed"]


def test_a_folder_in_the_way_is_refused(node: Path, originals: Any) -> None:
    result = originals("saved", "etc")
    assert result["failed"]
    assert "neither a file nor a link" in result["msg"]
    assert not (node / "rollback").exists()
