#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""The builds of CRIU on a node."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_criu_info
short_description: Describe the builds of CRIU on a node
version_added: "0.1.0"
description:
  - Reads the builds that lie side by side, checks each against what it was built as, and runs C(criu check) with each.
  - Changes nothing.
author:
  - gpuckpt maintainers
options:
  home:
    description: Folder with the builds of CRIU.
    type: path
    default: /opt/gpuckpt/criu
attributes:
  check_mode:
    description: The module only reads.
    support: full
  diff_mode:
    description: There is never a difference.
    support: none
"""

EXAMPLES = r"""
- name: Look at the builds
  ckpt_criu_info:
  register: criu_info

- name: Show which switches the build in use understands
  ansible.builtin.debug:
    var: (criu_info.builds | selectattr('names', 'contains', 'current') | first).switches
"""

RETURN = r"""
builds:
  description: The builds, in the order of their folders.
  returned: always
  type: list
  elements: dict
  contains:
    path: {description: Folder of the build., type: str, sample: /opt/gpuckpt/criu/0a1b2c3d4e5f}
    names: {description: "Links that lead to it (stock, patched, distro, current).", type: list, elements: str}
    manifest: {description: "Its BUILD.json, null if it is missing.", type: dict}
    version: {description: "What the program says of itself, null if it does not run.", type: str, sample: 4.2.1}
    binary_sha256: {description: "Digest of the program, null if it is missing.", type: str}
    plugin_sha256: {description: "Digest of the CUDA plugin, null if it has none.", type: str}
    switches: {description: Environment variables of gpuckpt that it understands., type: list, elements: str}
    check: {description: "ok, or what C(criu check) complained of.", type: str, sample: ok}
    problems: {description: How it differs from what it was built as; empty if it does not., type: list, elements: str}
current:
  description: Folder of the build that is used where nothing else is said, null if there is none.
  returned: always
  type: str
front:
  description: The criu that podman and runc find in PATH, null if there is none.
  returned: always
  type: str
settings:
  description: What the front's environment files set, by file.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ckpt.criu import builds as criu_builds
from ansible.module_utils.ckpt.criu.folder import HOME
from ansible.module_utils.ckpt.node.inspection import Node


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={"home": {"type": "path", "default": HOME}},
        supports_check_mode=True,
    )
    node = Node()
    builds = [criu_builds.examine(node, build) for build in criu_builds.find(node, module.params["home"])]
    module.exit_json(
        changed=False,
        builds=[build.as_dict() for build in builds],
        current=next((build.path for build in builds if "current" in build.names), None),
        front=node.which("criu"),
        settings=criu_builds.settings(node),
    )


if __name__ == "__main__":
    main()
