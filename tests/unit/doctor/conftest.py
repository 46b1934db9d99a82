# SPDX-License-Identifier: GPL-3.0-or-later
"""A node made of files below a folder, and of recorded outputs of commands."""

import os

import pytest
from ansible.module_utils.ckpt.node.inspection import Node
from ansible.module_utils.ckpt.system.commands import Result


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
