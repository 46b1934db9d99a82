#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Stop a server and remove what is left of it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_stop
short_description: Stop a server and remove what is left of it
description:
  - Ends the server's processes or container, unmounts its checkpoint, removes the container, and optionally checkpoints.
  - Containers without the label C(io.gpuckpt.server), and processes that the modules did not start, are left alone.
author: gpuckpt contributors
requirements:
  - root
extends_documentation_fragment:
  - ckpt
attributes:
  check_mode:
    description: Says whether there is something to stop or delete.
    support: full
  diff_mode:
    description: A measurement has nothing to compare.
    support: none
options:
  checkpoints:
    description: Folders of checkpoints of this server, to be deleted. Only a folder that holds a checkpoint is.
    type: list
    elements: path
    default: []
"""

EXAMPLES = r"""
- name: Stop the server
  ckpt_stop:
    runtime: podman
    server: "{{ inference_server_spec }}"

- name: Stop it and delete its checkpoint
  ckpt_stop:
    runtime: podman
    server: "{{ inference_server_spec }}"
    checkpoints: [/mnt/checkpoint-ram/golden]
"""

RETURN = r"""
reason:
  description: Why it failed, from a closed list; null after a success.
  returned: always
  type: str
actions:
  description: Commands that ran, in order.
  returned: always
  type: list
  elements: list
log_lines:
  description: Lines that show the cause of a failure.
  returned: always
  type: list
  elements: str
"""

import os
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ckpt.commands import Commands
from ansible.module_utils.ckpt.criu import Criu, exclusive
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.manifest import is_checkpoint
from ansible.module_utils.ckpt.runtimes import make_runtime
from ansible.module_utils.ckpt.spec import parse_server

OPTIONS: dict[str, Any] = {
    "runtime": {"type": "str", "choices": ["podman", "process"], "required": True},
    "server": {"type": "dict", "required": True},
    "checkpoints": {"type": "list", "elements": "path", "default": []},
}


def stop(params: dict[str, Any], commands: Commands, check_mode: bool) -> bool:
    """Stop and delete. Returns whether there was anything. Raises CkptError."""
    runtime = make_runtime(params["runtime"], parse_server(params["server"], params["runtime"]), Criu(), commands)
    folders = [folder for folder in params["checkpoints"] if os.path.isdir(folder)]
    foreign = [folder for folder in folders if not is_checkpoint(folder)]
    if foreign:
        raise CkptError(
            "bad_input",
            f"{', '.join(foreign)} holds no checkpoint; nothing was stopped or deleted. Name folders of checkpoints.",
        )
    with exclusive():
        present = runtime.instance().exists
        if present and not check_mode:
            runtime.remove()
        for folder in () if check_mode else folders:
            shutil.rmtree(folder)
    return present or bool(folders)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    commands = Commands()
    result: dict[str, Any] = {"changed": False, "actions": commands.actions, "reason": None, "log_lines": []}
    try:
        result["changed"] = stop(module.params, commands, module.check_mode)
    except CkptError as error:
        result.update(msg=error.message, reason=error.reason, log_lines=error.log_lines)
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
