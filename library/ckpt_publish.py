#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Publish the golden checkpoint of a server, for other nodes to fetch."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_publish
short_description: Publish the golden checkpoint of a server
description:
  - Copies the golden checkpoint of a server that is described on the node to where other nodes fetch it with C(ckpt_fetch). The node
    talks to the remote itself, through rclone or skopeo.
  - It is copied in parts, holes left out. The document that commits it is written last. It holds digests of all parts, and what a restore
    depends on.
  - A checkpoint that was published is not published again. A call that was broken off is gone on with by the next one.
  - The oldest publications beyond O(keep) are removed, but for those that a node uses.
author: gpuckpt contributors
requirements:
  - rclone, or skopeo for a registry
  - age, for encryption
  - ssh-keygen of OpenSSH 8.2 or newer, for signatures
attributes:
  check_mode:
    description: Says whether it would be published. Nothing is written, and nothing removed.
    support: full
  diff_mode:
    description: Nothing to compare.
    support: none
extends_documentation_fragment:
  - ckpt.copies
options:
  name:
    description: The name under which the server is served.
    type: str
    required: true
  state:
    description:
      - V(absent) gives up what this node has at the remote, which is its mark on the publication that it uses.
      - With O(published) the publications go, too, but for those that other nodes use.
      - V(listed) asks the remote what is published, and changes nothing.
    type: str
    choices: [present, absent, listed]
    default: present
  published:
    description: With O(state=absent), remove the publications of this O(name), too.
    type: bool
    default: false
  keep:
    description: How many publications stay, the newest first; V(0) keeps all.
    type: int
    default: 3
  part_mib:
    description: Size of a part in MiB, at most 8192.
    type: int
    default: 128
  sign_key:
    description: File on the node with a secret key of ssh, without a passphrase, that signs the document. For root alone.
    type: path
  age_recipients:
    description: Public keys of age that can read the copy. Without any it is not encrypted.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Publish the golden checkpoint
  ckpt_publish:
    name: reference
    rclone: store:checkpoints/golden
    credentials: /etc/gpuckpt/copies/rclone.conf
"""

RETURN = r"""
version:
  description: The publication that is this checkpoint; null where there is none.
  returned: success
  type: str
  sample: 000004-0a1b2c3d-5e6f7081
moved_bytes:
  description: Bytes that were sent, without the document.
  returned: success
  type: int
published:
  description: What is published, the newest first, with O(state=listed).
  returned: success
  type: list
  elements: str
removed:
  description: Publications that were removed.
  returned: success
  type: list
  elements: str
notes:
  description: What was not removed, and why.
  returned: success
  type: list
  elements: str
said:
  description: What was done, in a sentence.
  returned: success
  type: str
reason:
  description: Why it failed, from a closed list; null after a success.
  returned: always
  type: str
log_lines:
  description: What rclone, skopeo or age said.
  returned: always
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ckpt.copies import publish
from ansible.module_utils.ckpt.copies.transfer import options_of
from ansible.module_utils.ckpt.golden import wanted
from ansible.module_utils.ckpt.module import COPIES_OPTIONS, run_plain
from ansible.module_utils.ckpt.safety.locks import supervise

OPTIONS: dict[str, Any] = {
    **COPIES_OPTIONS,
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent", "listed"], "default": "present"},
    "published": {"type": "bool", "default": False},
    "keep": {"type": "int", "default": 3},
    "part_mib": {"type": "int", "default": 128},
    # the path of a file
    "sign_key": {"type": "path", "no_log": False},
    "age_recipients": {"type": "list", "elements": "str", "default": []},
}


def act(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Publishes, or forgets. Raises CkptError."""
    options = options_of(params)
    if params["state"] == "listed":
        return publish.listed(wanted.named(params["name"]), options).as_result()
    if params["state"] == "absent":
        return publish.forget(wanted.named(params["name"]), options, params["published"], check_mode).as_result()
    return publish.publish(wanted.load(params["name"]), options, check_mode).as_result()


def main() -> None:
    """Entry point."""
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    supervise(lambda: run_plain(module, "publication", act))


if __name__ == "__main__":
    main()
