#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decide which NVIDIA driver belongs on a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ckpt_driver_plan
short_description: Decide which NVIDIA driver belongs on a node
description:
  - Looks at GPUs, kernel, headers, Secure Boot and the loaded driver, and returns what is to be done and what stands in its way.
  - Changes nothing. A node without a GPU gets an empty plan.
options:
  branch:
    description: Driver branch that is wanted, the number before the first dot; 0 takes what is loaded.
    type: int
    default: 0
  kind:
    description: Kind of kernel modules. V(auto) takes the open ones from Turing on.
    type: str
    choices: [auto, open, proprietary]
    default: auto
  install:
    description: Whether a driver may be installed.
    type: bool
    default: false
  features:
    description: Features of CUDA checkpoints that the driver must have, by their names in module_utils/ckpt/cuda/features.py.
    type: list
    elements: str
    default: [actions]
  dkms_key_enrolled:
    description: Whether the firmware knows a key with which DKMS signs.
    type: bool
    default: false
  precompiled_package:
    description: Name of the package of precompiled modules, with C({kernel}) for the running kernel; empty to build them.
    type: str
    default: ""
attributes:
  check_mode:
    description: Never changes anything.
    support: full
  diff_mode:
    description: Nothing to show.
    support: none
author: gpuckpt maintainers
"""

EXAMPLES = r"""
- name: See what driver belongs here
  ckpt_driver_plan:
    features: [actions, driver-api]
  register: plan
"""

RETURN = r"""
plan:
  description: GPUs with their generations, kind and source of the modules, features, problems with their fix.
  type: dict
  returned: always
observed:
  description: What the node is; kernel, devices, loaded driver, headers, Secure Boot.
  type: dict
  returned: always
libraries:
  description: Libraries of the loaded driver that a container needs; path, file name and soname of each.
  type: list
  elements: dict
  returned: always
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ckpt.cuda import driver_plan
from ansible.module_utils.ckpt.cuda import features as driver_features
from ansible.module_utils.ckpt.node.inspection import Node


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "branch": {"type": "int", "default": 0},
            "kind": {"type": "str", "choices": ["auto", "open", "proprietary"], "default": "auto"},
            "install": {"type": "bool", "default": False},
            "features": {"type": "list", "elements": "str", "default": [driver_features.REQUIRED]},
            "dkms_key_enrolled": {"type": "bool", "default": False},
            "precompiled_package": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    asked = dict(module.params)
    pattern = asked.pop("precompiled_package")
    known = [feature.name for feature in driver_features.FEATURES]
    unknown = [name for name in asked["features"] if name not in known]
    if unknown:
        module.fail_json(msg=f"There is no feature {', '.join(unknown)}; choose from {', '.join(known)}.")
    if asked["install"] and not asked["branch"]:
        module.fail_json(msg="To install a driver, name its branch (580, say): what is newest changes from day to day.")
    node = Node()
    seen = driver_plan.observe(node, pattern)
    plan = driver_plan.decide(seen, driver_plan.Wish(**{**asked, "features": tuple(asked["features"])}))
    version = str(seen.driver["version"]) if seen.driver else ""
    libraries = driver_plan.container_libraries(node, version) if version else []
    module.exit_json(changed=False, plan=plan.as_dict(), observed=asdict(seen), libraries=libraries)


if __name__ == "__main__":
    main()
