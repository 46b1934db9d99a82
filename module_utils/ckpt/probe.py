# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of a probe: health, and requests one after another."""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils.ckpt import flows


def run(operation: flows.Operation, params: dict[str, Any]) -> None:
    """Wait until the server is healthy and send `requests` completions. Raises CkptError."""
    record, client = operation.record, operation.client
    client.ready()
    record.mark("T0", time.monotonic())
    own_limit = params["timeout_s"]
    option = "server.health_timeout_s" if own_limit is None else "timeout_s"
    record.mark("T3", client.wait_healthy(lambda: None, own_limit, option))
    record.counter["before"] = client.counter()
    for _ in range(params["requests"]):
        flows.send_canary(operation)
    expected = (record.counter["before"] or 0) + params["requests"]
    record.counter["after"] = client.counter_reaches(expected)
