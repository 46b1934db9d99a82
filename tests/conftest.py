# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the project's own modules importable the way Ansible makes them: library, module_utils, filter_plugins."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ansible.module_utils
import pytest

ROOT = Path(__file__).resolve().parent.parent

ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "library"), str(ROOT / "filter_plugins")]


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder on a disk: the one for temporary files lies in memory on some distributions (Debian 13)."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)
