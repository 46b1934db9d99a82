# SPDX-License-Identifier: GPL-3.0-or-later
"""Engines: what servers of one kind have in common.

A new one is an entry of ``ENGINES``, and a file of variables in role inference_server with the tasks that install it. What
an inventory can say of a single server (its command, paths, counter, hooks) is in its specification instead. Engine
``command`` has nothing but that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# vLLM's switch for /sleep, /wake_up and /collective_rpc
VLLM_DEV_MODE = "VLLM_SERVER_DEV_MODE"


@dataclass(frozen=True)
class Engine:
    """One kind of server."""

    # counter of finished requests at the server's counter_path; empty where it has none, or the inventory names it
    counter_metric: str = ""
    # where the server tells a digest of its memory
    memory_digest_path: str | None = None
    # what is added to the canary's request, and to requests under load
    canary_extra: dict[str, Any] = field(default_factory=dict)
    load_extra: dict[str, Any] = field(default_factory=dict)
    # the field of a request that keeps its answer apart from all earlier ones, by a text that is new each time
    salt_field: str = ""
    # whether it always has an interface for development, which asks for no password; the variable that switches one on
    develops: bool = False
    develops_with: str | None = None
    # how to fix a slimming that the server refused
    slimming_fix: str = ""


ENGINES = {
    "reference": Engine(
        counter_metric="gpuckpt_requests_total",
        memory_digest_path="/debug/digest",
        develops=True,
    ),
    "vllm": Engine(
        counter_metric="vllm:request_success_total",
        # vLLM joins several tokens into one event now and then; their numbers tell them apart
        canary_extra={"return_token_ids": True},
        # under load every answer has the same length, also where the model would end it
        load_extra={"ignore_eos": True},
        # a prompt seen before takes another path through the kernels, which changes last bits
        salt_field="cache_salt",
        develops_with=VLLM_DEV_MODE,
        slimming_fix=f"A vLLM server needs {VLLM_DEV_MODE}=1 and --enable-sleep-mode.",
    ),
    "command": Engine(slimming_fix="Look at the paths of server.sleep."),
}
