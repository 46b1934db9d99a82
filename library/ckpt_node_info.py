#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""What roles must know of a node."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_node_info
short_description: Tell what a node has
version_added: "0.1.0"
description:
  - Reads builds of CRIU, packages, free space, records of a run, mounts, memory, capabilities and limits.
  - Changes nothing and decides nothing.
author:
  - gpuckpt maintainers
options:
  candidates:
    description: Packages of which is told whether apt could install them.
    type: list
    elements: str
    default: []
  criu_home:
    description: Folder with the builds of CRIU.
    type: path
    default: /opt/gpuckpt/criu
  packages:
    description: Packages of which is told whether they are installed.
    type: list
    elements: str
    default: []
  paths:
    description: Absolute paths that are looked at.
    type: list
    elements: str
    default: []
  records:
    description: Folder whose records are counted. It need not exist.
    type: path
attributes:
  check_mode:
    description: The module only reads.
    support: full
  diff_mode:
    description: There is never a difference.
    support: none
"""

EXAMPLES = r"""
- name: See what the node has
  ckpt_node_info:
    paths: [/mnt/checkpoint-ram]
    records: /var/lib/gpuckpt/runs/mine/records
  register: node

- name: Show how much room the store has
  ansible.builtin.debug:
    msg: "{{ node.paths['/mnt/checkpoint-ram'].free_bytes }}"
"""

RETURN = r"""
builds:
  description: Names of the builds of CRIU whose program is there.
  returned: always
  type: list
  elements: str
  sample: [stock, patched, current]
capabilities:
  description: For each capability that a checkpoint may need, whether the module has it.
  returned: always
  type: dict
  sample: {CAP_SYS_ADMIN: true, CAP_SYS_RESOURCE: false}
complete_builds:
  description:
    - Names of the folders in O(criu_home) with a complete build of CRIU (one that has a C(BUILD.json)), the newest first.
      Links are left out.
  returned: always
  type: list
  elements: str
  sample: [0a1b2c3d4e5f, 5f4e3d2c1b0a]
crun_lacks:
  description:
    - What crun needs for a checkpoint and does not have. V(criu), it is missing or was not built with CRIU.
      V(libcriu), it does not find the library. V(cgroup-v2), the node does not have cgroup v2 alone.
  returned: always
  type: list
  elements: str
  sample: [criu, libcriu]
glibc:
  description: Version of the C library that the module's Python runs with, null if it is another than glibc.
  returned: always
  type: str
  sample: "2.36"
limits:
  description: Hard limits of the module's process (C(nofile), C(nproc), and C(memlock) in bytes), V(unlimited) where there is none.
  returned: always
  type: dict
  sample: {nofile: 1048576, nproc: unlimited, memlock: 8388608}
links:
  description: Symbolic links in O(criu_home) and among O(paths), with what they name.
  returned: always
  type: dict
  sample: {/opt/gpuckpt/criu/current: patched}
memory:
  description: C(total) and C(available) memory in bytes.
  returned: always
  type: dict
  sample: {total: 25276502016, available: 23563983872}
mounts:
  description: The mounts, in the kernel's order.
  returned: always
  type: list
  elements: dict
  contains:
    target: {description: Where it is mounted., type: str}
    type: {description: Type of the file system., type: str}
    source: {description: What is mounted., type: str}
    options: {description: Options of the mount and of its file system., type: list, elements: str}
offered:
  description: Those of O(candidates) that apt could install.
  returned: always
  type: list
  elements: str
packages:
  description: Versions of those of O(packages) that are installed, null on a node without dpkg.
  returned: always
  type: dict
  sample: {podman: 4.3.1+ds1-8+deb12u1}
paths:
  description:
    - What was asked for in O(paths). For each path C(exists), C(mount) (where its file system is mounted) and C(free_bytes),
      the bytes that are free there. These two are null for a path that does not exist.
    - C(filesystem) is the type of the file system that it lies on, or would lie on if it were made.
  returned: always
  type: dict
reason:
  description: Why it failed, one of the reasons of the measuring modules.
  returned: failure
  type: str
records:
  description: How many records O(records) holds.
  returned: always
  type: int
sysctls:
  description: Settings of the kernel that bound the limits, null where the kernel has none of that name.
  returned: always
  type: dict
  sample: {fs.nr_open: 1048576, kernel.pid_max: 4194304}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ckpt.criu.folder import HOME
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.node import info
from ansible.module_utils.ckpt.node.inspection import Node

OPTIONS: dict[str, Any] = {
    "candidates": {"type": "list", "elements": "str", "default": []},
    "criu_home": {"type": "path", "default": HOME},
    "packages": {"type": "list", "elements": "str", "default": []},
    "paths": {"type": "list", "elements": "str", "default": []},
    "records": {"type": "path"},
}


def main() -> None:
    """Entry point."""
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    try:
        module.exit_json(changed=False, **info.describe(Node(), **module.params))
    except CkptError as error:  # a command that does not end
        module.fail_json(msg=str(error), reason=error.reason)


if __name__ == "__main__":
    main()
