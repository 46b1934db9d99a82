# SPDX-License-Identifier: GPL-3.0-or-later
"""Recorded outputs for the tests of module_utils/ckpt."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.node.inspection import Node
from ansible.module_utils.ckpt.system.commands import Result
from project import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
FRONT = ROOT / "native" / "front" / "criu"


@pytest.fixture
def criu() -> Path:
    """Outputs of CRIU 4.2.1."""
    return FIXTURES / "criu-4.2.1"


@pytest.fixture
def podman() -> Path:
    """Outputs of podman 4.3.1."""
    return FIXTURES / "podman-4.3.1"


@pytest.fixture
def front(tmp_path: Path) -> Path:
    """The front with its fixed places below a temporary folder; the program that it starts shows its environment."""
    script = tmp_path / "criu"
    text = FRONT.read_text(encoding="utf-8")
    text = text.replace("/etc/gpuckpt", f"{tmp_path}/etc").replace("/run/gpuckpt", f"{tmp_path}/gpuckpt")
    text = text.replace("/opt/gpuckpt", f"{tmp_path}/gpuckpt")
    (tmp_path / "etc").mkdir()
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)
    for build in ("current", "stock"):
        program = tmp_path / "gpuckpt" / "criu" / build / "libexec" / "criu"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\necho BUILD={build}\nenv\n", encoding="utf-8")
        program.chmod(0o755)
    return script


@pytest.fixture
def make_node(tmp_path):
    """Returns a function (files, outputs) → Node; outputs maps the start of a command line to (rc, stdout)."""

    def make(files=None, outputs=None):
        for path, content in (files or {}).items():
            target = tmp_path / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            else:
                target.write_text(content)

        def run(argv):
            line = " ".join(argv)
            for start, (rc, stdout) in (outputs or {}).items():
                if line.startswith(start):
                    return Result(list(argv), rc, stdout, "", 0.0, 0.0)
            return Result(list(argv), 127, "", f"{argv[0]}: No such file or directory", 0.0, 0.0)

        return Node(os.fspath(tmp_path), run)

    return make
