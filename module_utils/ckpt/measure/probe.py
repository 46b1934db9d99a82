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
from .options import ProbeOptions
from .results import BillOfLoad, Counter, Load


def begin(kind: str, params: Mapping[str, Any]) -> tuple[flows.Operation, ProbeOptions]:
    """Checks the options. Raises CkptError (bad_input)."""
    options = ProbeOptions.from_params(params)
    operation = flows.open_operation(kind, params)
    if options.bill is not None:
        operation.record.bill = BillOfLoad(
            started=options.bill.started,
            asked_s=options.bill.at_s,
            concurrency=options.concurrency,
            max_tokens=options.max_tokens or operation.spec.canary.max_tokens,
        )
    return operation, options


def run(operation: flows.Operation, options: ProbeOptions) -> None:
    """Waits until the server is healthy and sends `requests` completions. Raises CkptError."""
    record, client, bill = operation.record, operation.client, options.bill
    client.ready()
    if bill is not None:
        time.sleep(max(0.0, bill.up_at_s + bill.at_s - time.monotonic()))
    record.mark("T0", time.monotonic())
    option = "server.health_timeout_s" if options.timeout_s is None else "timeout_s"
    record.mark("T3", client.wait_healthy(lambda: None, options.timeout_s, option))
    before = client.counter()
    record.take(Counter(before=before))
    if options.is_load:
        record.take(_send_load(operation, options))
    else:
        for _ in range(options.requests):
            flows.send_canary(operation)
    record.take(Counter(after=client.counter_reaches((before or 0) + options.requests)))


def _send_load(operation: flows.Operation, options: ProbeOptions) -> Load:
    """Several requests at a time. Raises CkptError."""
    senders = _Senders(operation.client, options.requests, options.max_tokens)
    completions = senders.run(options.concurrency)
    first = min(one.requested for one in completions)
    return Load(
        requests=[one.as_request(operation.record.marks["T0"]) for one in completions],
        first_token=min(one.first_token for one in completions),
        last_token=max(one.last_token for one in completions),
        after_s=None if options.bill is None else round(max(0.0, first - options.bill.up_at_s), 6),
    )


class _Senders:
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
