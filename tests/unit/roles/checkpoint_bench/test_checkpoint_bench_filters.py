# SPDX-License-Identifier: GPL-3.0-or-later
"""Which commit a run's manifest names."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from project import filters_of

ROLE = filters_of("checkpoint_bench")
SHA = "0a" * 20
DESCRIBE = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]


@pytest.mark.parametrize(
    ("described", "told"),
    [
        ("", {"sha": None, "dirty": None}),
        (SHA, {"sha": SHA, "dirty": False}),
        (f"{SHA}-dirty\n", {"sha": SHA, "dirty": True}),
    ],
)
def test_the_commit_and_whether_files_differ_from_it(described: str, told: dict[str, Any]) -> None:
    assert ROLE.checkpoint_bench_git(described) == told


def test_git_describes_a_checkout_so(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        own = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(tmp_path)]
        return subprocess.run(["git", *own, *words], check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    sha = git("rev-parse", "HEAD").strip()
    assert ROLE.checkpoint_bench_git(git(*DESCRIBE)) == {"sha": sha, "dirty": False}
    (tmp_path / "file").write_text("b")
    assert ROLE.checkpoint_bench_git(git(*DESCRIBE)) == {"sha": sha, "dirty": True}
