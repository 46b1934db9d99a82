#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checkpoint a running inference server."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_checkpoint
short_description: Checkpoint a running inference server
description:
  - Notes the canary's answer, the request counter and, where the server tells it, a digest of its memory.
  - Makes the server small if asked, dumps it, verifies the images, and writes C(checkpoint.json), which a restore is compared with.
  - A checkpoint that fails leaves the server serving, or stops it if it does not answer any more, and deletes its images.
  - A checkpoint that lies in O(checkpoint.dir) is replaced when the new one is complete, and stays as it is if that fails.
    The store must hold both for that time.
author: gpuckpt contributors
extends_documentation_fragment:
  - ckpt
  - ckpt.measurement
  - ckpt.record
attributes:
  check_mode:
    description: Checks the options and dumps nothing.
    support: full
  diff_mode:
    description: A measurement has nothing to compare.
    support: none
options:
  checkpoint:
    description: The checkpoint.
    type: dict
    required: true
    suboptions:
      name:
        description: Name of the checkpoint, that of its folder if it is left out.
        type: str
      dir:
        description: Folder of the checkpoint. It holds images of a process's memory, secrets included; keep it 0700.
        type: path
        required: true
      source:
        description:
          - V(store) and V(disk) keep the images in place, V(tar), V(tar.gz) and V(tar.zst) in one archive.
        type: str
        choices: [store, disk, tar, tar.gz, tar.zst]
        default: store
  slimming:
    description: How the server is made small before the dump. V(sleep1), V(sleep2) and V(kv-drop) use vLLM's sleep interface.
    type: str
    choices: [none, sleep1, sleep2, kv-drop, staged]
    default: none
  leave_running:
    description: Let the server go on after the dump.
    type: bool
    default: false
  tcp_established:
    description:
      - Include open TCP connections to others. Without it such a connection is an error.
      - Connections between the server's own processes are always included.
    type: bool
    default: false
  digests:
    description:
      - Which files get a digest in C(checkpoint.json). V(metadata) are all but the page images, and archives.
        V(pages) are the page images too, which takes as long as reading them all once more.
      - All processors read together, after the measured time. The record says in C(stats.digests) how many seconds and bytes.
    type: str
    choices: [metadata, pages]
    default: metadata
  flags:
    description: More options, for C(podman container checkpoint) or C(criu dump).
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Checkpoint the server into the store
  ckpt_checkpoint:
    runtime: podman
    server: "{{ inference_server_spec }}"
    checkpoint:
      dir: /mnt/checkpoint-ram/golden
      source: store
"""

RETURN = r"""
record:
  description:
    - The measurement, schema version 1. Moments in C(t) and C(phases) are seconds since T0 on the node's monotonic clock.
      Sizes in C(bytes) are bytes. Figures of C(stats) are as CRIU and podman give them (microseconds, pages).
    - T0 the command is started, T1 it returned, T2 every CUDA process runs, T3 first HTTP 200, T4 first token, T5 last token.
  returned: always, null where nothing was attempted
  type: dict
  sample: {"kind": "checkpoint", "status": "ok", "t": {"T0": 0.0, "T1": 0.35, "T2": null, "T3": 0.36, "T4": 0.39, "T5": 0.43}}
reason:
  description: Why it failed, from a closed list; null after a success.
  returned: always
  type: str
  sample: port_taken
actions:
  description: Commands that ran, in order.
  returned: always
  type: list
  elements: list
log_lines:
  description: Lines of CRIU's or the server's log that show the cause of a failure.
  returned: always
  type: list
  elements: str
checkpoint:
  description: What the restore will be compared with, as in C(checkpoint.json); sizes in bytes.
  returned: success
  type: dict
"""

from dataclasses import asdict
from typing import Any

from ansible.module_utils.ckpt.measure import checkpoint, flows
from ansible.module_utils.ckpt.measure.options import CheckpointOptions
from ansible.module_utils.ckpt.module import run_module
from ansible.module_utils.ckpt.vocabulary import LEVELS, SLIMMINGS, SOURCES

OPTIONS: dict[str, Any] = {
    "checkpoint": {
        "type": "dict",
        "required": True,
        "options": {
            "name": {"type": "str"},
            "dir": {"type": "path", "required": True},
            "source": {"type": "str", "choices": list(SOURCES), "default": "store"},
        },
    },
    "slimming": {"type": "str", "choices": list(SLIMMINGS), "default": "none"},
    "leave_running": {"type": "bool", "default": False},
    "tcp_established": {"type": "bool", "default": False},
    "digests": {"type": "str", "choices": list(LEVELS), "default": "metadata"},
    "flags": {"type": "list", "elements": "str", "default": []},
}


def flow(operation: flows.Operation, options: CheckpointOptions) -> dict[str, Any]:
    """Runs the flow; returns what the result holds next to the record."""
    return {"checkpoint": asdict(checkpoint.run(operation, options))}


def main() -> None:
    """Entry point."""
    run_module("checkpoint", OPTIONS, checkpoint.begin, flow)


if __name__ == "__main__":
    main()
