# SPDX-License-Identifier: GPL-3.0-or-later
"""Recorded outputs for the tests of module_utils/ckpt."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
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
