#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Claim a node for one play, so that no other starts or stops servers there meanwhile."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_claim
short_description: Claim a node for one play
description:
  - Notes on the node which play uses it, and fails where another one does, with its name, run and process.
  - A claim is no change to the node, since it does not outlast the play.
  - The claim of a play that has ended is void. The node knows that of its own processes. The controller knows it of its
    own, which its part of this module (action_plugins/ckpt_claim.py) asks. Of a play from another controller only its silence tells.
author: gpuckpt contributors
requirements:
  - root
attributes:
  check_mode:
    description: Says whether the node could be claimed, and claims nothing.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
options:
  state:
    description:
      - V(claimed) claims the node. What the same play has claimed before is claimed anew.
      - V(free) fails where another play has the node, and claims nothing.
      - V(released) gives up what this play has claimed; where it has nothing, nothing happens.
    type: str
    choices: [claimed, free, released]
    default: claimed
  by:
    description: What others read of the play, its file by convention. Needed with O(state=claimed).
    type: str
  run_id:
    description: The run that is measured.
    type: str
  signs:
    description: Folder on the node that changes while the play goes on.
    type: path
  silence_s:
    description: Seconds without a sign of life after which a play that another controller started counts as ended.
    type: int
    default: 7200
  continued:
    description: Take the node from the same run, if nobody knows whether that goes on.
    type: bool
    default: false
  take_over:
    description: Take the node from any play of which nobody knows whether it goes on.
    type: bool
    default: false
  holder:
    description: The process of the controller that plays the play; its part of the module fills it in.
    type: dict
  known:
    description: What the controller knows of the process that has the node (C(process), C(lives)); its part of the module fills it in.
    type: dict
  node:
    description:
      - What the inventory calls this node; the controller's part of the module fills it in.
      - A play that has the node under one name is refused under another.
    type: str
"""

EXAMPLES = r"""
- name: Claim the node
  ckpt_claim:
    by: bench.yml
    run_id: "20260101T000000Z"
    signs: /var/lib/gpuckpt/runs/20260101T000000Z/records

- name: Give it up
  ckpt_claim:
    state: released
"""

RETURN = r"""
held:
  description:
    - The claim of the other play, if the node could not be had. After a success, that of a play that ended without giving it up.
    - Null where there is none. C(since) is in seconds of the epoch.
  returned: always
  type: dict
known:
  description: Whether it was known of that play if it runs; if not, the controller may know.
  returned: failure
  type: bool
reason:
  description: Why it failed, from a closed list; null after a success.
  returned: always
  type: str
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ckpt.errors import CkptError, os_errors_explained
from ansible.module_utils.ckpt.safety import claim

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["claimed", "free", "released"], "default": "claimed"},
    "by": {"type": "str"},
    "run_id": {"type": "str"},
    "signs": {"type": "path"},
    "silence_s": {"type": "int", "default": 7200},
    "continued": {"type": "bool", "default": False},
    "take_over": {"type": "bool", "default": False},
    "holder": {"type": "dict"},
    "known": {"type": "dict"},
    "node": {"type": "str"},
}


def act(params: dict[str, Any], write: bool) -> claim.Claim | None:
    """Does what is asked. Returns the claim of a play that did not give it up. Raises CkptError, claim.NodeTakenError."""
    if params["holder"] is None:
        raise CkptError(
            "internal", "the controller's part of ckpt_claim did not run: ansible.cfg names its folder, action_plugins."
        )
    holder = claim.parse_process(params["holder"])
    if params["state"] == "released":
        claim.release(holder, params["node"] or "", write)
        return None
    wanted = claim.Claim(
        params["by"] or "",
        params["run_id"] or None,
        time.time(),
        holder,
        params["signs"],
        params["silence_s"],
        params["node"] or "",
    )
    known = claim.NOTHING
    if params["known"]:
        known = claim.Known(claim.parse_process(params["known"]["process"]), params["known"]["lives"])
    write = write and params["state"] == "claimed"
    return claim.take(wanted, known, params["take_over"], params["continued"], write)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(argument_spec=OPTIONS, required_if=[("state", "claimed", ["by"])], supports_check_mode=True)
    result: dict[str, Any] = {"changed": False, "held": None, "reason": None}
    try:
        with os_errors_explained():
            former = act(module.params, not module.check_mode)
    except claim.NodeTakenError as error:
        module.fail_json(
            **{
                **result,
                "msg": error.message,
                "reason": error.reason,
                "held": error.held.as_dict(),
                "known": error.known,
            }
        )
    except CkptError as error:
        module.fail_json(**{**result, "msg": error.message, "reason": error.reason})
    if former is not None:
        result["held"] = former.as_dict()
        if module.params["state"] == "claimed":
            module.warn(f"The node was claimed by {former}, which ended without giving it up.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
