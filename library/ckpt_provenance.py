#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's part of a run's manifest."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_provenance
short_description: Describe everything about a node that a measurement depends on
version_added: "0.1.0"
description:
  - Returns the node's part of the manifest of a run, so that two runs can be told apart, or known to be alike.
  - Changes nothing, and returns no name, address or secret of the node.
author:
  - gpuckpt maintainers
options:
  criu_home:
    description: Folder with the builds of CRIU.
    type: path
    default: /opt/gpuckpt/criu
  store_path:
    description: Mount point of the checkpoint store.
    type: path
    default: /mnt/checkpoint-ram
  image:
    description: Container image of the server under test, whose digest is recorded.
    type: str
  model_path:
    description:
      - Weights of the server under test, a file or a folder.
      - Digests are taken from C(FILE.sha256) or C(FOLDER/gpuckpt-model.json), which are written when the weights are made.
    type: path
  python:
    description: Interpreter that runs the server under test, whose packages are recorded.
    type: path
  pythonpath:
    description: Folders of packages that it sees before its own, as in C(PYTHONPATH).
    type: list
    elements: path
    default: []
  packages:
    description: Python packages whose versions are recorded.
    type: list
    elements: str
    default: [vllm, torch, transformers]
attributes:
  check_mode:
    description: The module only reads.
    support: full
  diff_mode:
    description: There is never a difference.
    support: none
"""

EXAMPLES = r"""
- name: Learn what the node is
  ckpt_provenance:
    image: localhost/gpuckpt-reference:latest
    model_path: /var/lib/gpuckpt/weights/256.bin
  register: learned

- name: Show the kernel
  ansible.builtin.debug:
    var: learned.provenance.host.kernel
"""

RETURN = r"""
provenance:
  description: What the node is.
  returned: always
  type: dict
  contains:
    host:
      description: "Kernel, processor, memory in bytes, transparent huge pages, cgroups, mount of the store."
      type: dict
    software: {description: Versions of podman and the OCI runtimes; digest of the image., type: dict}
    criu: {description: "Builds with their digests and patches, the front, its settings.", type: dict}
    gpu: {description: "Driver, CUDA version and GPUs with memory in bytes; null without a driver.", type: dict}
    packages: {description: Versions of Python packages of the server; null if no interpreter was given., type: dict}
    weights: {description: Weights with sizes in bytes and digests; null if no path was given., type: dict}
    golden: {description: "Golden checkpoints: where, size, age, whether they fit, their starts, what they save; null without any.", type: list}
    modules_python: {description: Version of the interpreter that runs the modules., type: str, sample: 3.11.2}
"""

import platform

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.ckpt import paths
from ansible.module_utils.ckpt.criu import folder
from ansible.module_utils.ckpt.golden import history, wanted
from ansible.module_utils.ckpt.measure import provenance
from ansible.module_utils.ckpt.node.inspection import Node


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "criu_home": {"type": "path", "default": folder.HOME},
            "store_path": {"type": "path", "default": paths.STORE},
            "image": {"type": "str"},
            "model_path": {"type": "path"},
            "python": {"type": "path"},
            "pythonpath": {"type": "list", "elements": "path", "default": []},
            "packages": {"type": "list", "elements": "str", "default": ["vllm", "torch", "transformers"]},
        },
        supports_check_mode=True,
    )
    options = module.params
    node = Node()
    module.exit_json(
        changed=False,
        provenance={
            "host": provenance.host(node, options["store_path"]),
            "software": provenance.software(node, options["image"]),
            "criu": provenance.criu(node, options["criu_home"]),
            "gpu": provenance.gpu(node),
            "packages": provenance.packages(node, options["python"], options["pythonpath"], options["packages"]),
            "weights": provenance.weights(node, options["model_path"]),
            "golden": history.overview(wanted.readable()) or None,
            "modules_python": platform.python_version(),
        },
    )


if __name__ == "__main__":
    main()
