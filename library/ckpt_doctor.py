#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""What would fail on a node, why, and how to fix it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_doctor
short_description: Examine what a node can do, and say how to fix what it cannot
version_added: "0.1.0"
description:
  - Judges everything that checkpoints and restores of an inference server depend on, and returns one finding for each.
  - Changes nothing. One check dumps and restores a small process of its own, in a scratch folder that it removes.
  - Findings never fail the module; look at RV(ready) and RV(findings).
author:
  - gpuckpt maintainers
options:
  groups:
    description: Which groups of checks to run.
    type: list
    elements: str
    choices: [host, criu, containers, store, server, gpu]
    default: [host, criu, containers, store, server, gpu]
  criu_home:
    description: Folder with the builds of CRIU.
    type: path
    default: /opt/gpuckpt/criu
  store_path:
    description: Mount point of the checkpoint store.
    type: path
    default: /mnt/checkpoint-ram
  seccomp_path:
    description: Seccomp profile that denies io_uring to containers.
    type: path
    default: /etc/containers/seccomp.d/no-io-uring.json
  gpu_libraries:
    description: Folder with the driver's libraries for containers.
    type: path
    default: /opt/nvidia-libs
  port:
    description: TCP port that the server under test will listen on.
    type: int
    default: 18080
  trial:
    description:
      - Whether to dump and restore a small process for real.
      - Skipped in check mode.
    type: bool
    default: true
attributes:
  check_mode:
    description: Runs the same checks, without the trial.
    support: full
  diff_mode:
    description: There is never a difference.
    support: none
"""

EXAMPLES = r"""
- name: Examine the node
  ckpt_doctor:
    port: 18080
  register: examined

- name: Stop where a checkpoint would fail
  ansible.builtin.assert:
    that: examined.ready
    fail_msg: "{{ examined.matrix | join('\n') }}"
"""

RETURN = r"""
findings:
  description: One finding for each check, in the order of the groups.
  returned: always
  type: list
  elements: dict
  contains:
    id: {description: Stable name of the check., type: str, sample: criu-trial}
    group: {description: Group of the check., type: str, sample: criu}
    title: {description: What was looked at., type: str, sample: dump and restore of a listener}
    state: {description: "One of ok, warn, fail, skip.", type: str, sample: ok}
    detail: {description: What was found., type: str, sample: works (0.31 s)}
    why: {description: What goes wrong where it fails., type: str}
    fix: {description: "What to do, null if there is nothing to do.", type: str}
    command: {description: "A command that does it, null if there is none.", type: str}
count:
  description: How many findings there are of each state.
  returned: always
  type: dict
  sample: {ok: 18, warn: 2, fail: 0, skip: 12}
ready:
  description: Whether no check failed.
  returned: always
  type: bool
matrix:
  description: The findings as lines to read.
  returned: always
  type: list
  elements: str
actions:
  description: The commands that ran.
  returned: always
  type: list
  elements: list
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ckpt.doctor import GROUPS, CheckContext, count, examine, matrix

# Importing these registers their checks.
from ansible.module_utils.ckpt.doctor import containers, criu, gpu, host, store  # noqa: F401  # isort: skip
from ansible.module_utils.ckpt.node.inspection import Node


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "groups": {"type": "list", "elements": "str", "choices": list(GROUPS), "default": list(GROUPS)},
            "criu_home": {"type": "path", "default": CheckContext.criu_home},
            "store_path": {"type": "path", "default": CheckContext.store_path},
            "seccomp_path": {"type": "path", "default": CheckContext.seccomp_path},
            "gpu_libraries": {"type": "path", "default": CheckContext.gpu_libraries},
            "port": {"type": "int", "default": CheckContext.port},
            "trial": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    options = module.params
    node = Node()
    context = CheckContext(
        node,
        criu_home=options["criu_home"],
        store_path=options["store_path"],
        seccomp_path=options["seccomp_path"],
        gpu_libraries=options["gpu_libraries"],
        port=options["port"],
        trial=options["trial"] and not module.check_mode,
        workdir=module.tmpdir,
    )
    findings = examine(context, options["groups"])
    states = count(findings)
    module.exit_json(
        changed=False,
        findings=[finding.as_dict() for finding in findings],
        count=states,
        ready=states["fail"] == 0,
        matrix=matrix(findings),
        actions=node.commands.actions,
    )


if __name__ == "__main__":
    main()
