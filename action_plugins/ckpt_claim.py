# Copyright: gpuckpt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of ckpt_claim: which process plays the play, and whether that of another play still runs."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.plugins.action import ActionBase

# Ansible finds our module_utils for modules only.
OURS = str(Path(__file__).resolve().parent.parent / "module_utils")
if OURS not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(OURS)

from ansible.module_utils.ckpt.safety.claim import identify, parse_process


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible declares no types
    """Runs the module, and again with what is known here of the play that has the node."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns the module's result."""
        super().run(tmp, task_vars)
        # Tasks are run by workers, which end with them.
        parent = multiprocessing.parent_process()
        holder = identify(parent.pid if parent and parent.pid else os.getpid())
        options = {**self._task.args, "holder": vars(holder), "node": (task_vars or {}).get("inventory_hostname")}
        result: dict[str, Any] = self._execute_module(module_args=options, task_vars=task_vars)
        if not result.get("held") or result.get("known", True):
            return result
        other = parse_process(result["held"]["holder"])
        known = {"process": vars(other), "lives": other.lives()}
        return dict(self._execute_module(module_args={**options, "known": known}, task_vars=task_vars))
