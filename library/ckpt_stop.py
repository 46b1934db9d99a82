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
  - Succeeds only if no process of the server is left and its port is free, also where podman or CRIU was killed before.
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
  left_behind:
    description:
      - Stop not the server itself, but the running ones of any runtime that are named after it (its name, a hyphen, anything).
        The servers of a benchmark are. One that was broken off may have left them.
      - Containers that a checkpoint is restored into are stopped and kept.
    type: bool
    default: false
  checkpoints:
    description: Folders of checkpoints of this server, to be deleted. Only a folder that holds a checkpoint is.
    type: list
    elements: path
    default: []
  keep_container:
    description: Only stop it, and keep the container that checkpoints in place are restored into.
    type: bool
    default: false
  run_id:
    description:
      - The run that wants it. Fails, and stops nothing, if another play has claimed the node meanwhile.
      - A module of this run that is still at work, since its task ran out of time, is ended first.
    type: str
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

- name: Stop what a broken-off benchmark left
  ckpt_stop:
    runtime: podman
    server: "{{ inference_server_spec }}"
    left_behind: true
"""

RETURN = r"""
stopped:
  description: Names of the servers that were stopped; in check mode, of those that would be.
  returned: success
  type: list
  elements: str
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
from dataclasses import replace
from typing import Any

from ansible.module_utils.ckpt.checkpoints import replacement
from ansible.module_utils.ckpt.checkpoints.manifest import is_checkpoint
from ansible.module_utils.ckpt.criu.choice import Criu
from ansible.module_utils.ckpt.errors import CkptError, os_errors_explained
from ansible.module_utils.ckpt.module import ServerModule
from ansible.module_utils.ckpt.runtimes import RUNTIMES, make_runtime
from ansible.module_utils.ckpt.safety import leftovers
from ansible.module_utils.ckpt.safety.claim import guard
from ansible.module_utils.ckpt.safety.locks import EndedEarly, as_failure, end_holder_of, exclusive, supervise
from ansible.module_utils.ckpt.server.spec import parse_server
from ansible.module_utils.ckpt.system.commands import Commands

OPTIONS: dict[str, Any] = {
    "runtime": {"type": "str", "choices": list(RUNTIMES), "required": True},
    "server": {"type": "dict", "required": True},
    "left_behind": {"type": "bool", "default": False},
    "checkpoints": {"type": "list", "elements": "path", "default": []},
    "keep_container": {"type": "bool", "default": False},
    "run_id": {"type": "str"},
}


def stop(params: dict[str, Any], commands: Commands, check_mode: bool) -> tuple[list[str], bool]:
    """Stops and deletes. Returns the server's name if it was there, and whether there was anything. Raises CkptError."""
    runtime = make_runtime(params["runtime"], parse_server(params["server"], params["runtime"]), Criu(), commands)
    folders = [folder for folder in params["checkpoints"] if os.path.isdir(folder)]
    foreign = [folder for folder in folders if not is_checkpoint(folder)]
    if foreign:
        raise CkptError(
            "bad_input",
            f"{', '.join(foreign)} holds no checkpoint; nothing was stopped or deleted. Name folders of checkpoints.",
        )
    with exclusive("ckpt_stop", params["run_id"]):
        found = runtime.instance()
        if params["keep_container"]:
            if not check_mode:
                runtime.stop()
            return [params["server"]["name"]] if found.running else [], found.running
        present = found.exists
        if present and not check_mode:
            runtime.remove()
        traces = [path for folder in params["checkpoints"] for path in replacement.traces(folder)]
        for path in () if check_mode else traces:
            shutil.rmtree(path)
        if not check_mode:
            leftovers.forget((params["runtime"], params["server"]["name"]), params["checkpoints"])
    return [params["server"]["name"]] if present else [], present or bool(traces)


def stop_left_behind(params: dict[str, Any], commands: Commands, check_mode: bool) -> tuple[list[str], bool]:
    """Stops running servers that are named after this one. Returns their names, and whether there were any. Raises CkptError."""
    spec = parse_server(params["server"], None)
    names = []
    with exclusive("ckpt_stop", params["run_id"]):
        for runtime in RUNTIMES:
            kin = make_runtime(runtime, spec, Criu(), commands).running_kin()
            for name in () if check_mode else kin:
                make_runtime(runtime, replace(spec, name=name), Criu(), commands).end_left_behind()
            names += kin
    return names, bool(names)


def main() -> None:
    """Entry point."""
    module = ServerModule(
        argument_spec=OPTIONS,
        mutually_exclusive=[("left_behind", "checkpoints", "keep_container")],
        supports_check_mode=True,
    )
    supervise(lambda: run(module))


def run(module: ServerModule) -> None:
    """The module itself."""
    commands = Commands()
    result: dict[str, Any] = {"changed": False, "actions": commands.actions, "reason": None, "log_lines": []}
    try:
        with os_errors_explained():
            if module.params["run_id"]:
                guard(module.params["run_id"])
                if not module.check_mode:
                    end_holder_of(module.params["run_id"])
            act = stop_left_behind if module.params["left_behind"] else stop
            result["stopped"], result["changed"] = act(module.params, commands, module.check_mode)
    except (CkptError, EndedEarly) as caught:
        error = caught if isinstance(caught, CkptError) else as_failure("stop", caught)
        result.update(msg=error.message, reason=error.reason, log_lines=error.log_lines)
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
