#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Remove what benchmarks left that were broken off."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_leftovers
short_description: Remove what benchmarks left that were broken off
description:
  - Names and removes servers and checkpoints, finished or not, that a benchmark has made which does not have the node any more.
  - What was made without a run is never touched, nor is what a run was told to keep.
author: gpuckpt contributors
requirements:
  - root
attributes:
  check_mode:
    description: Names what would be removed.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
options:
  state:
    description:
      - V(absent) removes what is left of every run but the one that has claimed the node.
      - V(kept) makes sure that nothing of O(run_id) ever counts as left behind.
    type: str
    choices: [absent, kept]
    default: absent
  run_id:
    description: The run whose checkpoints are kept. Needed with O(state=kept).
    type: str
"""

EXAMPLES = r"""
- name: Remove what broken-off benchmarks left
  ckpt_leftovers:

- name: Keep the checkpoints of a run
  ckpt_leftovers:
    state: kept
    run_id: "20260101T000000Z"
"""

RETURN = r"""
found:
  description: What was removed, in check mode what would be. One entry for each run, with C(run_id), C(servers) (each a runtime and a name), and C(checkpoints).
  returned: success
  type: list
  elements: dict
  sample: [{"run_id": "20260101T000000Z", "servers": [["podman", "gpuckpt-reference-cold"]], "checkpoints": ["/mnt/checkpoint-ram/podman-store-0a1b2c3d"]}]
reason:
  description: Why it failed, from a closed list; null after a success.
  returned: always
  type: str
actions:
  description: Commands that ran, in order.
  returned: always
  type: list
  elements: list
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.safety import leftovers
from ansible.module_utils.ckpt.safety.locks import EndedEarly, as_failure, exclusive, supervise
from ansible.module_utils.ckpt.system.commands import Commands

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["absent", "kept"], "default": "absent"},
    "run_id": {"type": "str"},
}


def clear(commands: Commands, check_mode: bool) -> list[leftovers.Made]:
    """Removes what is left behind. Returns it. Raises CkptError."""
    with exclusive("ckpt_leftovers"):
        found = leftovers.find(commands)
        for made in () if check_mode else found:
            leftovers.clear(made, commands)
    return [made for made in found if made.servers or made.checkpoints]


def keep(run_id: str, check_mode: bool) -> None:
    """Lets nothing of this run count as left behind."""
    with exclusive("ckpt_leftovers"):
        if not check_mode:
            leftovers.keep(run_id)


def run(module: AnsibleModule) -> None:
    """The module itself."""
    commands = Commands()
    result: dict[str, Any] = {"changed": False, "actions": commands.actions, "reason": None, "found": []}
    try:
        if module.params["state"] == "kept":
            keep(module.params["run_id"], module.check_mode)
        else:
            found = clear(commands, module.check_mode)
            result.update(found=[made.as_dict() for made in found], changed=bool(found))
    except (CkptError, EndedEarly) as caught:
        error = caught if isinstance(caught, CkptError) else as_failure("removal", caught)
        module.fail_json(**{**result, "msg": error.message, "reason": error.reason})
    module.exit_json(**result)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(argument_spec=OPTIONS, required_if=[("state", "kept", ["run_id"])], supports_check_mode=True)
    supervise(lambda: run(module))


if __name__ == "__main__":
    main()
