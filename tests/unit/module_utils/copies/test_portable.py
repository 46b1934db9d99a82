# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a checkpoint of one node fits another is told by what matters, and not by times of files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.ckpt.copies import portable
from ansible.module_utils.ckpt.copies.publication import Publication
from ansible.module_utils.ckpt.golden import identity
from ansible.module_utils.ckpt.golden.wanted import Wanted
from ansible.module_utils.ckpt.node.inspection import Node


def node_at(root: Path, age: int, kernel: str = "6.1.0-28-amd64", model: str = "weights") -> Node:
    files = {
        "proc/sys/kernel/osrelease": f"{kernel}\n",
        "proc/cpuinfo": "model name : A Processor\nflags : fpu avx2\n",
        "opt/server.py": "print()\n",
        "models/small/model.bin": model,
        "models/small/below/tokens": "tokens",
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        os.utime(path, (age, age))
    return Node(str(root))


def served(**more: Any) -> Wanted:
    server = {
        "name": "one",
        "kind": "reference",
        "model": "m",
        "port": 18080,
        "command": ["/opt/server.py", "--model=/models/small"],
    }
    return Wanted("one", "process", {**server, **more}, "/var/lib/gpuckpt/golden")


def published(node: Node, wanted: Wanted) -> Publication:
    made = identity.of(wanted, node)
    return Publication(
        name="one",
        instance="x-1",
        version="000001-1-00000000",
        node="00000000",
        host="a",
        made_at="",
        first_token_s=0.1,
        bytes=1,
        source="disk",
        identity=made,
        part_bytes=8,
        contents=portable.contents(made, node),
        server=portable.server_keys(wanted),
    )


@pytest.fixture
def here(tmp_path: Path) -> Publication:
    return published(node_at(tmp_path / "a", 1000), served())


def misfits(found: Publication, node: Node, wanted: Wanted | None = None) -> list[str]:
    wanted = wanted or served()
    return portable.misfits(found, wanted, identity.of(wanted, node), node)


def test_other_times_are_no_difference(here: Publication, tmp_path: Path) -> None:
    other = node_at(tmp_path / "b", 2000)
    assert identity.differences(here.identity, identity.of(served(), other)) != []
    assert misfits(here, other) == []


def test_other_contents_are(here: Publication, tmp_path: Path) -> None:
    (found,) = misfits(here, node_at(tmp_path / "b", 1001, model="WEIGHTS"))
    assert found.startswith("files: /models/small was ")
    (found,) = misfits(here, node_at(tmp_path / "c", 1000, kernel="6.2"))
    assert found == "kernel was 6.1.0-28-amd64, is 6.2"


def test_a_file_that_is_missing_is_named(here: Publication, tmp_path: Path) -> None:
    other = node_at(tmp_path / "b", 1000)
    (tmp_path / "b/opt/server.py").unlink()
    (found,) = misfits(here, other)
    assert found.startswith("files: /opt/server.py was ")
    assert found.endswith("is none")


def test_another_description_names_the_keys_and_no_values(here: Publication, tmp_path: Path) -> None:
    other = served(port=18081, env={"KEY": "a-secret"})
    (found,) = misfits(here, node_at(tmp_path / "b", 1000), other)
    assert found == "the server's description differs in env, port"


def test_a_large_file_of_another_size_is_not_read(here: Publication, tmp_path: Path) -> None:
    other = node_at(tmp_path / "b", 1000)
    (tmp_path / "b/opt/server.py").write_text("print('longer')\n")
    read: list[str] = []
    now = identity.of(served(), other)
    portable.misfits(here, served(), now, other, digest=lambda path: read.append(path))
    assert read == []
