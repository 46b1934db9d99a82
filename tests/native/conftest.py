# SPDX-License-Identifier: GPL-3.0-or-later
"""Real CRIU, stock and patched, on real processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from criu_harness import Build, Target, become_subreaper, build  # noqa: E402  (its folder is on no path before)


@pytest.fixture(scope="session")
def stock_build() -> Build:
    return build("stock", with_tree=False)


@pytest.fixture(scope="session")
def patched_build() -> Build:
    return build("patched", with_tree=True)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled programs/*.c. Skips everything that needs them without root."""
    if os.geteuid() != 0:
        pytest.skip("CRIU needs root")
    become_subreaper()
    folder = tmp_path_factory.mktemp("programs")
    for source in sorted((HERE / "programs").glob("*.c")):
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", folder / source.stem, source]
        subprocess.run(command, check=True)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs for images, as checkpoints have in use."""
    folder = tmp_path / "store"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4g,mode=0700", "gpuckpt-test", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def targets() -> Iterator[list[Target]]:
    """Processes to stop at the end of the test, whatever happened."""
    started: list[Target] = []
    yield started
    for target in started:
        target.stop()
