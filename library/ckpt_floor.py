#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Measure what a node cannot beat."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_floor
short_description: Measure what no restore on this node can beat
description:
  - Measures the cost of a CUDA context in a fresh process (median of three).
  - Measures rates, the best of several each. Copies to the first GPU start in pinned and in ordinary memory, and one and eight threads
    read the checkpoint store.
  - Calls the driver's library C(libcuda.so.1) in processes of its own, which hold GPU memory for a moment and are killed if they hang.
  - The report makes the floor line of each lane of it.
author: gpuckpt contributors
extends_documentation_fragment:
  - ckpt.record
requirements:
  - root
  - Python 3.11 or newer on the node
attributes:
  check_mode:
    description: Checks the options and measures nothing.
    support: full
  diff_mode:
    description: A measurement has nothing to compare.
    support: none
options:
  gpu:
    description: Whether to measure the GPU.
    type: bool
    default: true
  store_path:
    description:
      - Folder of the checkpoint store. Its rates are left out if none is given, or if it has no room for a file of O(size_mib).
    type: path
  size_mib:
    description: Bytes that are copied or read at once, in MiB. Three times as much memory must be available.
    type: int
    default: 1024
  limit_s:
    description: Seconds after which one of the measuring processes is killed.
    type: float
    default: 60
"""

EXAMPLES = r"""
- name: Measure the floor of a node
  ckpt_floor:
    store_path: /mnt/checkpoint-ram
    record: {run_id: "{{ run_id }}", host: "{{ inventory_hostname }}", seq: 1, lane: node}
    record_path: "/var/lib/gpuckpt/runs/{{ run_id }}/records/000001-floor.json"

- name: Measure how fast the checkpoint store is read
  ckpt_floor:
    gpu: false
    store_path: /mnt/checkpoint-ram
"""

RETURN = r"""
record:
  description:
    - The measurement, schema version 1. C(floor) holds C(context) in seconds, C(copy_h2d) (pinned), C(copy_h2d_pageable),
      C(store_read_1) and C(store_read_8) in bytes a second; it is empty after a failure.
  returned: always, null where nothing was attempted
  type: dict
  sample: {"kind": "floor", "status": "ok", "floor": {"context": {"value": 0.4, "unit": "s"}, "copy_h2d": {"value": 5.2e10, "unit": "B/s"}}}
reason:
  description: Why it failed, from a closed list; null after a success.
  returned: always
  type: str
  sample: gpu_memory_short
actions:
  description: Commands that ran, in order; this module runs none.
  returned: always
  type: list
  elements: list
log_lines:
  description: Lines of a log that show the cause of a failure.
  returned: always
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.ckpt.measure import floor
from ansible.module_utils.ckpt.measure.options import FloorOptions
from ansible.module_utils.ckpt.module import measure

OPTIONS: dict[str, Any] = {
    "gpu": {"type": "bool", "default": True},
    "store_path": {"type": "path"},
    "size_mib": {"type": "int", "default": 1024},
    "limit_s": {"type": "float", "default": 60},
}


def flow(measurement: floor.Measurement, options: FloorOptions) -> dict[str, Any]:
    """Runs the flow; returns what the result holds next to the record."""
    floor.run(measurement, options)
    return {}


def main() -> None:
    """Entry point."""
    measure("floor", OPTIONS, floor.begin, flow)


if __name__ == "__main__":
    main()
