#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the gpuckpt contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Wait for a server and send it completions."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ckpt_probe
short_description: Wait for an inference server and send it completions
description:
  - Polls the server's health every 5 ms, then sends completions, and measures time to first token and duration. Each has a
    connection of its own that is closed again.
  - By default they are the canary, one after another. With O(concurrency), O(max_tokens) or O(bill) each has a prompt of
    its own, and the record notes when it was sent. vLLM is then told to answer at full length.
  - Changes nothing but the server's request counter.
author: gpuckpt contributors
extends_documentation_fragment:
  - ckpt
  - ckpt.measurement
  - ckpt.record
attributes:
  check_mode:
    description: Checks the options and sends nothing.
    support: full
  diff_mode:
    description: A measurement has nothing to compare.
    support: none
options:
  requests:
    description: Number of completions.
    type: int
    default: 5
  concurrency:
    description: Number of completions that are under way at a time.
    type: int
    default: 1
  max_tokens:
    description: Tokens of each answer; those of the canary if it is left out.
    type: int
  bill:
    description: The start whose bill this is a part of; goes into the record.
    type: dict
    suboptions:
      started:
        description: What brought the server up.
        type: str
        choices: [cold, restore]
        required: true
      up_at_s:
        description: The C(up_at_s) that C(ckpt_start) or C(ckpt_restore) returned.
        type: float
        required: true
      at_s:
        description: Seconds after O(bill.up_at_s) at which the requests begin; later if that moment has passed.
        type: float
        required: true
  timeout_s:
    description: How long to wait for the server's health, in seconds; C(server.health_timeout_s) if it is left out.
    type: float
"""

EXAMPLES = r"""
- name: Warm the server up
  ckpt_probe:
    runtime: podman
    server: "{{ inference_server_spec }}"
    requests: 5

- name: Measure throughput a minute after a restore
  ckpt_probe:
    runtime: podman
    server: "{{ inference_server_spec }}"
    requests: 8
    concurrency: 8
    max_tokens: 128
    bill: {started: restore, up_at_s: "{{ restored.up_at_s }}", at_s: 60}
    record: {run_id: "{{ run_id }}", host: "{{ inventory_hostname }}", seq: 9, lane: podman-mapped, iteration: 1}
    record_path: "/var/lib/gpuckpt/runs/{{ run_id }}/records/000009-probe.json"
"""

RETURN = r"""
record:
  description:
    - The measurement, schema version 1. Moments in C(t) and C(phases) are seconds since T0 on the node's monotonic clock.
      Sizes in C(bytes) are bytes. Figures of C(stats) are as CRIU and podman give them (microseconds, pages).
    - T0 the command is started, T1 it returned, T2 every CUDA process runs, T3 first HTTP 200, T4 first token, T5 last token.
  returned: always, null where nothing was attempted
  type: dict
  sample: {"kind": "probe", "status": "ok", "t": {"T0": 0.0, "T1": 0.35, "T2": null, "T3": 0.36, "T4": 0.39, "T5": 0.43}}
outcome:
  description: What came of it in one line, for a reader who waits.
  returned: when O(bill) and O(record) are given
  type: str
  sample: "podman-mapped, bill 1: 812 tokens/s, 9.6 ms a token, 60.0 s after it was up"
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

from ansible.module_utils.ckpt.measure import flows, probe
from ansible.module_utils.ckpt.measure.options import ProbeOptions
from ansible.module_utils.ckpt.module import run_module
from ansible.module_utils.ckpt.vocabulary import MEASURED_KINDS

OPTIONS: dict[str, Any] = {
    "requests": {"type": "int", "default": 5},
    "concurrency": {"type": "int", "default": 1},
    # no secret, whatever its name suggests
    "max_tokens": {"type": "int", "no_log": False},
    "bill": {
        "type": "dict",
        "options": {
            "started": {"type": "str", "choices": list(MEASURED_KINDS), "required": True},
            "up_at_s": {"type": "float", "required": True},
            "at_s": {"type": "float", "required": True},
        },
    },
    "timeout_s": {"type": "float"},
}


def flow(operation: flows.Operation, options: ProbeOptions) -> dict[str, Any]:
    """Runs the flow; returns what the result holds next to the record."""
    probe.run(operation, options)
    return {}


def main() -> None:
    """Entry point."""
    run_module("probe", OPTIONS, probe.begin, flow)


if __name__ == "__main__":
    main()
