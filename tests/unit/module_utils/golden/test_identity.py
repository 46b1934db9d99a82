# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes a golden checkpoint unfit, and what does not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.golden import identity, wanted
from ansible.module_utils.ckpt.golden.wanted import Wanted
from ansible.module_utils.ckpt.node.inspection import Node
from ansible.module_utils.ckpt.parsing import FormatError
from ansible.module_utils.ckpt.system.commands import Result

CPUINFO = "processor : 0\nmodel name : A Processor\nflags : fpu avx2\n"
DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node of files, with a GPU."""
    files = {
        "proc/sys/kernel/osrelease": "6.1.0-28-amd64\n",
        "proc/cpuinfo": CPUINFO,
        "proc/driver/nvidia/version": DRIVER,
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 16\n",
        "opt/server.py": "print()\n",
        "models/small/config.json": "{}",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Node(str(tmp_path), lambda argv: Result(list(argv), 0, "sha256:0a\n", "", 0.0, 0.0))


@pytest.fixture
def served() -> Wanted:
    """A server whose command names a script, a weights folder, and something that is no file."""
    server = {
        "name": "gpuckpt-reference",
        "kind": "reference",
        "model": "m",
        "port": 18080,
        "command": ["/usr/bin/nowhere", "/opt/server.py", "--model=/models/small", "--port", "18080"],
    }
    return Wanted("one", "process", server, "/var/lib/gpuckpt/golden")


def test_a_folder_of_packages_is_the_same_when_python_has_compiled_some(node: Node, served: Wanted) -> None:
    models = Path(node.path("/models/small"))
    (models / "package").mkdir()
    (models / "gone").symlink_to(models / "nowhere")
    before = identity.of(served, node)
    (models / "package" / "__pycache__").mkdir()
    (models / "__pycache__").mkdir()
    assert identity.differences(before, identity.of(served, node)) == []
    (models / "package-2.dist-info").mkdir()
    assert identity.differences(before, identity.of(served, node)) != []


def test_the_same_node_is_the_same(node: Node, served: Wanted) -> None:
    first, second = identity.of(served, node), identity.of(served, node)
    assert identity.differences(first, second) == []
    assert set(first["files"]) == {"/opt/server.py", "/models/small"}
    assert first["gpus"] == ["NVIDIA H100 80GB HBM3"]
    assert first["driver"] == "580.95.05"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("proc/sys/kernel/osrelease", "6.1.0-31-amd64", "kernel was 6.1.0-28-amd64, is 6.1.0-31-amd64"),
        ("proc/cpuinfo", CPUINFO.replace("avx2", "avx512f"), "processor: features was "),
        ("proc/driver/nvidia/version", DRIVER.replace("580", "590"), "driver was 580.95.05, is 590.95.05"),
        ("opt/server.py", "print(1)\n", "files: /opt/server.py was 8 bytes of "),
        ("models/small/weights.bin", "new", "files: /models/small was "),
    ],
)
def test_what_a_restore_depends_on_is_named(node: Node, served: Wanted, name: str, content: str, said: str) -> None:
    made = identity.of(served, node)
    Path(node.root, name).write_text(content)
    (difference,) = identity.differences(made, identity.of(served, node))
    assert difference.startswith(said)


def test_a_file_of_the_same_size_with_another_time_is_another(node: Node, served: Wanted) -> None:
    made = identity.of(served, node)
    os.utime(f"{node.root}/opt/server.py", (0, 0))
    assert len(identity.differences(made, identity.of(served, node))) == 1


@pytest.mark.parametrize(
    "change", [{"server": {"port": 18081}}, {"slimming": "sleep1"}, {"criu": {"switches": {"CRIU_X": 1}}}]
)
def test_another_description_is_another_identity(node: Node, served: Wanted, change: dict) -> None:
    other = replace(
        served,
        **{
            key: {**getattr(served, key), **value} if isinstance(value, dict) else value
            for key, value in change.items()
        },
    )
    assert identity.differences(identity.of(served, node), identity.of(other, node))


def test_an_image_is_known_by_its_digest(node: Node, served: Wanted) -> None:
    contained = replace(served, runtime="podman", server={**served.server, "image": "localhost/x:latest"})
    assert identity.of(contained, node)["image"] == "sha256:0a"
    assert identity.of(served, node)["image"] is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../x"}, "name must be letters"),
        ({"slimming": "thin"}, "slimming must be one of none, sleep1"),
        ({"verify": "all"}, "verify must be one of"),
        ({"folder": "here"}, "folder must be an absolute path"),
        ({"runtime": "docker"}, "the runtime of one must be one of podman, process"),
        ({"warmup_requests": 0}, "warmup_requests must be 1 or more"),
        ({"server": {}}, "server.name is missing"),
    ],
)
def test_a_wrong_description_says_what_is_wrong(served: Wanted, change: dict, said: str) -> None:
    with pytest.raises(CkptError, match=said) as caught:
        replace(served, **change)
    assert caught.value.reason == "bad_input"


def test_a_description_is_read_as_it_was_written(
    served: Wanted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(wanted, "FOLDER", str(tmp_path))
    assert served.write()
    assert not served.write(), "nothing has changed"
    assert wanted.load("one") == served
    assert wanted.names() == ["one"]
    assert os.stat(tmp_path / "one.json").st_mode & 0o077 == 0
    (tmp_path / "one.json").write_text('{"name": "one"}')
    with pytest.raises(CkptError, match=r"cannot be read .*run checkpoint.yml again"):
        wanted.load("one")
    with pytest.raises(CkptError, match=r"no server two is described on this node \(there are: one\)"):
        wanted.load("two")


def test_a_description_of_another_version_is_refused(served: Wanted) -> None:
    with pytest.raises(FormatError, match="another version"):
        wanted.parse({**vars(served), "schema_version": 99})
