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
  - Polls the server's health every 5 ms, then sends the canary prompt a number of times, one after another, each on a
    connection of its own that is closed again, and measures time to first token and duration.
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
"""

RETURN = r"""
record:
  description:
    - The measurement, schema version 1. Moments in C(t) and C(phases) are seconds since T0 on the node's monotonic clock,
      sizes in C(bytes) are bytes, figures of C(stats) are as CRIU and podman give them (microseconds, pages).
    - T0 the command is started, T1 it returned, T2 every CUDA process runs, T3 first HTTP 200, T4 first token, T5 last token.
  returned: always, null where nothing was attempted
  type: dict
  sample: {"kind": "probe", "status": "ok", "t": {"T0": 0.0, "T1": 0.35, "T2": null, "T3": 0.36, "T4": 0.39, "T5": 0.43}}
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

from ansible.module_utils.ckpt import flows, probe
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.module import run_module

OPTIONS: dict[str, Any] = {
    "requests": {"type": "int", "default": 5},
    "timeout_s": {"type": "float"},
}


def flow(operation: flows.Operation, params: dict[str, Any]) -> dict[str, Any]:
    """Run the flow; returns what the result holds beside the record."""
    if params["requests"] < 1:
        raise CkptError("bad_input", "requests must be 1 or more.")
    probe.run(operation, params)
    return {}


def main() -> None:
    """Entry point."""
    run_module("probe", OPTIONS, flow)


if __name__ == "__main__":
    main()
