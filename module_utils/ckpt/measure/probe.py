# SPDX-License-Identifier: GPL-3.0-or-later
"""The flow of a probe: health, and requests one after another or several at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from ..errors import CkptError
from ..server.client import Client, Completion
from . import flows


def begin(kind: str, params: Mapping[str, Any]) -> flows.Operation:
    """Check the options. Raises CkptError (bad_input)."""
    counts = ("requests", "concurrency", "max_tokens")
    too_small = [key for key in counts if params[key] is not None and params[key] < 1]
    if too_small:
        raise CkptError("bad_input", f"{' and '.join(too_small)} must be 1 or more.")
    operation = flows.open_operation(kind, params)
    bill = params["bill"]
    if bill is not None:
        if bill["at_s"] < 0:
            raise CkptError("bad_input", "bill.at_s must be 0 or more.")
        operation.record.bill = {
            "started": bill["started"],
            "asked_s": bill["at_s"],
            "at_s": None,
            "concurrency": params["concurrency"],
            "max_tokens": params["max_tokens"] or operation.spec.canary.max_tokens,
        }
    return operation


def run(operation: flows.Operation, params: dict[str, Any]) -> None:
    """Wait until the server is healthy and send `requests` completions. Raises CkptError."""
    record, client, bill = operation.record, operation.client, params["bill"]
    client.ready()
    if bill is not None:
        time.sleep(max(0.0, bill["up_at_s"] + bill["at_s"] - time.monotonic()))
    record.mark("T0", time.monotonic())
    own_limit = params["timeout_s"]
    option = "server.health_timeout_s" if own_limit is None else "timeout_s"
    record.mark("T3", client.wait_healthy(lambda: None, own_limit, option))
    record.counter["before"] = client.counter()
    if params["concurrency"] == 1 and params["max_tokens"] is None and bill is None:
        for _ in range(params["requests"]):
            flows.send_canary(operation)
    else:
        _send_load(operation, params)
    expected = (record.counter["before"] or 0) + params["requests"]
    record.counter["after"] = client.counter_reaches(expected)


def _send_load(operation: flows.Operation, params: dict[str, Any]) -> None:
    """Several requests at a time, with the first and the last token of all in the record. Raises CkptError."""
    record = operation.record
    load = _Load(operation.client, params["requests"], params["max_tokens"])
    completions = load.run(params["concurrency"])
    record.mark("T4", min(one.first_token for one in completions))
    record.mark("T5", max(one.last_token for one in completions))
    record.requests = [one.as_request(record.marks["T0"]) for one in completions]
    if record.bill is not None:
        first = min(one.requested for one in completions)
        record.bill["at_s"] = round(max(0.0, first - params["bill"]["up_at_s"]), 6)


class _Load:
    """Requests that threads take one after another, each on a connection of its own."""

    def __init__(self, client: Client, requests: int, max_tokens: int | None) -> None:
        self._client = client
        self._prompts = [client.spec.load_prompt(number, max_tokens) for number in reversed(range(requests))]
        self._completions: list[Completion] = []
        self._error: CkptError | None = None

    def run(self, concurrency: int) -> list[Completion]:
        """All answers, in the order of their requests. Raises CkptError (server_unhealthy) if one failed."""
        # daemons: one that waits for an answer must not hold up a module that has reached its limit
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(concurrency)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return sorted(self._completions, key=lambda one: one.requested)

    def _work(self) -> None:
        while self._error is None:
            try:
                prompt = self._prompts.pop()
            except IndexError:
                return
            try:
                self._completions.append(self._client.complete(prompt))
            except CkptError as error:
                self._error = error
