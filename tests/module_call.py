# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a module of library/ as Ansible runs it, without Ansible around: a process of its own that reads its options and prints JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# runtimes for tests alone: each file registers the one that it is named after, where those of users are registered
RUNTIMES = ROOT / "tests" / "runtimes"
OWN_RUNTIMES = sorted(path.stem for path in RUNTIMES.glob("*.py"))
# A module that is started by hand reads its options there. Ansible's helper for tests would import mocks and asyncio each time.
RUN_MODULE = """
import importlib, runpy, sys
import ansible.module_utils
_, utils, module, folder, *runtimes = sys.argv
ansible.module_utils.__path__.append(utils)
sys.path.append(folder)
for runtime in runtimes:
    importlib.import_module(runtime)
sys.argv = [module]
runpy.run_path(module, run_name="__main__")
"""


class ModuleCall:
    """A module under way. Its output goes into files, so that nothing that it leaves behind can hold up its reader."""

    def __init__(self, module: str, options: dict[str, Any]) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 # read when the module has ended
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        program = [sys.executable, "-c", RUN_MODULE, str(ROOT / "module_utils"), str(ROOT / "library" / f"{module}.py")]
        program += [str(RUNTIMES), *OWN_RUNTIMES]
        with tempfile.TemporaryFile("w+") as given:
            json.dump({"ANSIBLE_MODULE_ARGS": options}, given)
            given.seek(0)
            self.process = subprocess.Popen(program, stdin=given, stdout=self._said, stderr=self._errors)

    def finish(self, timeout_s: float) -> dict[str, Any] | None:
        """What the module returned; None if it ended without a result, as one that was killed does.

        :raises subprocess.TimeoutExpired: if it does not end; it goes on
        """
        self.process.wait(timeout_s)
        self._said.seek(0)
        lines = self._said.read().strip().splitlines()
        try:
            return dict(json.loads(lines[-1])) if lines else None
        except ValueError:
            return None

    def errors(self) -> str:
        """What it wrote on standard error."""
        self._errors.seek(0)
        return self._errors.read()


def call(module: str, timeout_s: float = 180, **options: Any) -> dict[str, Any]:
    """Runs a module to its end and returns its result."""
    running = ModuleCall(module, options)
    result = running.finish(timeout_s)
    assert result is not None, running.errors()
    return result
