#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Fetch the golden checkpoint of a server that another node has published."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_fetch
short_description: Fetch a golden checkpoint that another node has published
description:
  - Describes a server on the node, for C(gpuckpt-serve), and brings the newest published checkpoint of it that fits this node.
  - Whether it fits is told by a small document, before anything large is moved. Where none fits, the failure names what differs.
    Then the server is described all the same, and C(gpuckpt-serve) starts it cold.
  - A file of the server whose time differs, such as a model, is the same if its content is.
  - Every part is compared with its digest before it is written to its place. The checkpoint is committed last. A call that was broken off
    is gone on with by the next one, and nothing that is not whole is ever served.
  - Where a golden checkpoint is here that fits, nothing is fetched, unless a O(version) is asked for.
author: gpuckpt contributors
requirements:
  - rclone, or skopeo for a registry
  - age, for encrypted copies
  - ssh-keygen of OpenSSH 8.2 or newer, for signatures
attributes:
  check_mode:
    description: Says whether a checkpoint would be fetched, and fetches none.
    support: full
  diff_mode:
    description: Nothing to compare.
    support: none
extends_documentation_fragment:
  - ckpt
  - ckpt.golden
  - ckpt.copies
options:
  trusted_signers:
    description: Public keys of ssh. With some, a publication that none of them has signed fails with V(copy_untrusted), and nothing is copied.
    type: list
    elements: str
    default: []
  version:
    description: The publication to fetch, in place of the newest that fits.
    type: str
"""

EXAMPLES = r"""
- name: Fetch the golden checkpoint
  ckpt_fetch:
    name: reference
    runtime: process
    server: "{{ inference_server_spec }}"
    rclone: store:checkpoints/golden
    credentials: /etc/gpuckpt/copies/rclone.conf
"""

RETURN = r"""
version:
  description: The publication that is here now; null where a checkpoint that fits was here before.
  returned: success
  type: str
  sample: 000004-0a1b2c3d-5e6f7081
because:
  description: In words, why it was fetched.
  returned: success
  type: list
  elements: str
  sample: ["there is no golden checkpoint yet"]
moved_bytes:
  description: Bytes of parts that were fetched. Parts that an earlier call has brought are not among them.
  returned: success
  type: int
notes:
  description: What did not work, and did no harm.
  returned: success
  type: list
  elements: str
said:
  description: What was done, in a sentence.
  returned: success
  type: str
reason:
  description: Why it failed, from a closed list; null after a success. V(checkpoint_unfit) says that no publication fits this node.
  returned: always
  type: str
log_lines:
  description: What rclone, skopeo or age said, or what each publication differs in.
  returned: always
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.ckpt.copies import fetch
from ansible.module_utils.ckpt.copies.transfer import options_of
from ansible.module_utils.ckpt.golden.wanted import Wanted
from ansible.module_utils.ckpt.module import COPIES_OPTIONS, GOLDEN_OPTIONS, ServerModule, run_plain
from ansible.module_utils.ckpt.safety.locks import supervise

OPTIONS: dict[str, Any] = {
    **GOLDEN_OPTIONS,
    **COPIES_OPTIONS,
    "version": {"type": "str"},
    "trusted_signers": {"type": "list", "elements": "str", "default": []},
}


def act(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Fetches, unless one that fits is here. Raises CkptError."""
    server = Wanted.of_options(params)
    server.require_apart()
    # first: one that does not get a checkpoint can be served all the same
    described = not check_mode and server.write()
    result = fetch.fetch(server, options_of(params), params["version"], check_mode).as_result()
    return {**result, "changed": result["changed"] or described}


def main() -> None:
    """Entry point."""
    module = ServerModule(argument_spec=OPTIONS, supports_check_mode=True)
    supervise(lambda: run_plain(module, "fetch", act))


if __name__ == "__main__":
    main()
