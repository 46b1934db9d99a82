# SPDX-License-Identifier: GPL-3.0-or-later
"""What a manifest says of the server's packages, asked of a real interpreter."""

import sys
from pathlib import Path

from ansible.module_utils.ckpt.measure import provenance
from ansible.module_utils.ckpt.node.inspection import Node


def test_packages_of_an_interpreter_are_named(tmp_path: Path) -> None:
    about = tmp_path / "vllm-0.25.1.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.25.1\n")
    found = provenance.packages(Node(), sys.executable, [str(tmp_path)], ["vllm", "no-such-package"])
    assert found == {"python": sys.version.split()[0], "vllm": "0.25.1"}


def test_an_interpreter_that_is_not_there_names_none() -> None:
    assert provenance.packages(Node(), "/nonexistent/python3", [], ["vllm"]) is None


def test_an_image_is_named_with_how_it_was_asked_for() -> None:
    names = ("localhost/no-such-image:latest", f"localhost/no-such-image@sha256:{'0' * 64}")
    found = [provenance.describe_image(Node(), name) for name in names]
    assert [(image["name"], image["digest"], image["by"]) for image in found] == [
        (names[0], None, "tag"),
        (names[1], None, "digest"),
    ]
