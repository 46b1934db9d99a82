# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the project lies, for tests in any folder, and what lies where Python does not look."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]


def filters_of(role: str) -> SimpleNamespace:
    """The filters of a role by their names, as Ansible finds them there."""
    found = {}
    for source in sorted((ROOT / "roles" / role / "filter_plugins").glob("*.py")):
        spec = importlib.util.spec_from_file_location(source.stem, source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found |= module.FilterModule().filters()
    return SimpleNamespace(**found)
