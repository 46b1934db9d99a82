# SPDX-License-Identifier: GPL-3.0-or-later
"""The fake driver of the tests of vLLM's plugin."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FAKE = Path(__file__).with_name("fake_memory.c")


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("fake") / "libcuda.so.1"
    command = ["gcc", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared", "-o", str(library), str(FAKE)]
    subprocess.run(command, check=True)
    return library
