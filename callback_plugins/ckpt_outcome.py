# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tells what came of each measurement while a benchmark runs."""

from __future__ import annotations

DOCUMENTATION = r"""
name: ckpt_outcome
type: notification
short_description: Tells what came of each measurement while a benchmark runs
description:
  - Prints the C(outcome) of modules that measured something (M(ckpt_start), M(ckpt_restore), M(ckpt_probe)), one line each.
  - A task of its own for that line would cost each measurement a process on the controller.
author: gpuckpt contributors
requirements:
  - enabled in the project's ansible.cfg
"""

from typing import TYPE_CHECKING

from ansible.plugins.callback import CallbackBase

if TYPE_CHECKING:
    from ansible.executor.task_result import CallbackTaskResult


class CallbackModule(CallbackBase):  # type: ignore[misc]  # Ansible has no types
    """Prints outcomes."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "ckpt_outcome"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """Prints the outcome, if there is one."""
        outcome = result.result.get("outcome")
        if outcome:
            self._display.display(f"  {outcome}")

    def v2_runner_item_on_ok(self, result: CallbackTaskResult) -> None:
        """The same for a turn of a loop."""
        self.v2_runner_on_ok(result)
