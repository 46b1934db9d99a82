#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Start an inference server cold and measure it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_start
short_description: Start an inference server cold and measure it
description:
  - Starts the server, polls its health every 5 ms, and sends the canary prompt, streamed.
  - A start that fails leaves neither process nor container behind.
author: gpuckpt contributors
extends_documentation_fragment:
  - ckpt
  - ckpt.measurement
  - ckpt.record
attributes:
  check_mode:
    description: Checks the options and starts nothing.
    support: full
  diff_mode:
    description: A measurement has nothing to compare.
    support: none
options:
  stop_after:
    description: Stop and remove the server after the measurement.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Start the server and leave it running
  ckpt_start:
    runtime: podman
    server: "{{ inference_server_spec }}"

- name: Measure a cold start
  ckpt_start:
    runtime: podman
    server: "{{ inference_server_spec }}"
    stop_after: true
    record: {run_id: "{{ run_id }}", host: "{{ inventory_hostname }}", seq: 1, lane: cold, iteration: 1}
    record_path: "/var/lib/gpuckpt/runs/{{ run_id }}/records/000001-cold.json"
"""

RETURN = r"""
record:
  description:
    - The measurement, schema version 1. Moments in C(t) and C(phases) are seconds since T0 on the node's monotonic clock.
      Sizes in C(bytes) are bytes. Figures of C(stats) are as CRIU and podman give them (microseconds, pages).
    - T0 the command is started, T1 it returned, T2 every CUDA process runs, T3 first HTTP 200, T4 first token, T5 last token.
  returned: always, null where nothing was attempted
  type: dict
  sample: {"kind": "cold", "status": "ok", "t": {"T0": 0.0, "T1": 0.35, "T2": null, "T3": 0.36, "T4": 0.39, "T5": 0.43}}
outcome:
  description: What came of it in one line, for a reader who waits; times in seconds.
  returned: when O(record) is given
  type: str
  sample: "cold, iteration 1: first token after 0.386 s"
up_at_s:
  description: >-
    When the command had returned and the canary was answered whole, in seconds on the node's monotonic clock; the
    option C(bill.up_at_s) of C(ckpt_probe) takes it. Null after a failure.
  returned: always
  type: float
  sample: 81234.567
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
"""

from typing import Any

from ansible.module_utils.ckpt.measure import flows, start
from ansible.module_utils.ckpt.measure.options import StartOptions
from ansible.module_utils.ckpt.module import run_module

OPTIONS: dict[str, Any] = {"stop_after": {"type": "bool", "default": False}}


def flow(operation: flows.Operation, options: StartOptions) -> dict[str, Any]:
    """Runs the flow; returns what the result holds next to the record."""
    start.run(operation, options)
    return {}


def main() -> None:
    """Entry point."""
    run_module("cold", OPTIONS, start.begin, flow)


if __name__ == "__main__":
    main()
