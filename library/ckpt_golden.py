#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make the golden checkpoint of a server, once, and keep it under a name."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_golden
short_description: Make the golden checkpoint of a server, once
description:
  - Describes a server on the node, for C(gpuckpt-serve), and makes the checkpoint that it is served from.
  - It is started, warmed up with canary requests, checkpointed, and restored once on trial. Only a checkpoint whose trial passes the truth
    gate of C(ckpt_restore) is committed. The server is stopped afterwards.
  - A checkpoint that fits is not made again. It fits if kernel, processor, driver, GPUs, CRIU and its switches are the same.
    So must be the server's description, its program and its model.
  - An older checkpoint stays until the new one has proved itself.
author: gpuckpt contributors
attributes:
  check_mode:
    description: Says whether a checkpoint would be made, and makes none.
    support: full
  diff_mode:
    description: Nothing to compare.
    support: none
extends_documentation_fragment:
  - ckpt.golden
options:
  runtime:
    description: What holds its processes, as for C(ckpt_start). Needed with O(state=present).
    type: str
    choices: [podman, process]
  server:
    description: The server, as for C(ckpt_start). Needed with O(state=present).
    type: dict
  state:
    description: V(absent) removes the checkpoint and the description of this O(name). The server must not be served at that time.
    type: str
    choices: [present, absent]
    default: present
  force:
    description: Make it even if the one that is there fits.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Make the golden checkpoint of the server
  ckpt_golden:
    name: reference
    runtime: process
    server: "{{ inference_server_spec }}"
"""

RETURN = r"""
golden:
  description:
    - The checkpoint. C(folder) is where it lies, C(instance) the server that it was taken of, C(bytes) the size of its images.
    - C(first_token_s) is what its trial took from the command to the first token, C(identity) what a restore depends on.
  returned: success, null where there is none
  type: dict
  sample: {"name": "reference", "folder": "/var/lib/gpuckpt/golden/reference/gpuckpt-reference-0a1b2c3d", "first_token_s": 0.21}
because:
  description: In words, why it was made; empty if it was not.
  returned: success
  type: list
  elements: str
  sample: ["kernel was 6.1.0-28-amd64, is 6.1.0-31-amd64"]
reason:
  description: Why it failed, from a closed list; null after a success.
  returned: always
  type: str
log_lines:
  description: Lines of CRIU's or the server's log that show the cause of a failure.
  returned: always
  type: list
  elements: str
"""

from dataclasses import asdict
from typing import Any

from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.golden import make, start, supervisor, wanted
from ansible.module_utils.ckpt.module import GOLDEN_OPTIONS, ServerModule, run_plain
from ansible.module_utils.ckpt.safety.locks import supervise

OPTIONS: dict[str, Any] = {
    **GOLDEN_OPTIONS,
    "runtime": {**GOLDEN_OPTIONS["runtime"], "required": False},
    "server": {**GOLDEN_OPTIONS["server"], "required": False},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "force": {"type": "bool", "default": False},
}


def present(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Describe the server, and make its checkpoint if none fits. Raises CkptError."""
    server = wanted.Wanted.of_options(params)
    server.require_apart()
    state = start.examine(server)
    because = ["it was asked for"] if params["force"] and not state.misfits else state.misfits
    golden, changed = state.golden, bool(because)
    if not check_mode:
        if because:
            _require_stopped(params["name"])
            golden = make.make(server)
        # after the proof: what is served is described only when it can be
        changed |= server.write()
    return {"golden": None if golden is None else asdict(golden), "because": because, "changed": changed}


def absent(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Forget a server that was described. Raises CkptError."""
    there = params["name"] in wanted.names()
    if there and not check_mode:
        _require_stopped(params["name"])
        make.forget(wanted.load(params["name"]))
        wanted.remove(params["name"])
    return {"golden": None, "because": [], "changed": there}


def _require_stopped(name: str) -> None:
    serving = supervisor.status(name)
    if serving is not None:
        raise CkptError(
            "server_running",
            f"{name} is being served ({serving.mode}, since {serving.since}); stop it first "
            f"(systemctl stop gpuckpt-serve@{name}, or serve.yml with serve_state=stopped).",
        )


def act(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """What is asked for. Raises CkptError."""
    return present(params, check_mode) if params["state"] == "present" else absent(params, check_mode)


def main() -> None:
    """Entry point."""
    module = ServerModule(
        argument_spec=OPTIONS, required_if=[("state", "present", ("runtime", "server"))], supports_check_mode=True
    )
    supervise(lambda: run_plain(module, "golden checkpoint", act))


if __name__ == "__main__":
    main()
