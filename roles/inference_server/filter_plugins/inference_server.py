# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role inference_server: which settings cannot work, and what follows from runtime and GPUs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ansible.module_utils

# Ansible finds our module_utils for modules only.
OURS = str(Path(__file__).resolve().parents[3] / "module_utils")
if OURS not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(OURS)

from ansible.module_utils.ckpt.server import parallel
from ansible.module_utils.ckpt.vocabulary import RUNTIME_TRAITS, RUNTIMES

Data = dict[str, Any]

PHASES = ("validate", "install", "configure", "verify", "rollback")
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
PORTS = range(1, 65536)


def inference_server_problems(asked: Data) -> list[str]:
    """Returns everything in the settings that cannot work, each with what to do about it.

    :param asked: variables of the role without their prefix, and ``kinds``, those that there are
    """
    unknown = [phase for phase in asked["phases"] if phase not in PHASES]
    rules = [
        (
            asked["kind"] not in asked["kinds"],
            f"inference_server_kind is {asked['kind']}: choose one of {', '.join(asked['kinds'])}",
        ),
        (asked["port"] not in PORTS, f"inference_server_port is {asked['port']}: choose a TCP port from 1 to 65535"),
        (
            asked["weights_mib"] < 1,
            f"inference_server_weights_mib is {asked['weights_mib']}: give the size of the weights in MiB, at least 1",
        ),
        (
            asked["gpus"] < 1,
            f"inference_server_vllm_gpus is {asked['gpus']}: give the number of GPUs of one server, at least 1",
        ),
        (
            asked["runtime"] not in RUNTIMES,
            f"inference_server_runtime is {asked['runtime']}: choose {' or '.join(RUNTIMES)}",
        ),
        (
            not NAME.fullmatch(asked["name"]),
            f"inference_server_name is {asked['name']}: use lower-case words joined by -",
        ),
        (bool(unknown), f"inference_server_phases has unknown phases: {', '.join(unknown)}"),
        (
            asked["canary"].get("temperature", 0) != 0,
            "inference_server_canary.temperature must be 0: "
            "only greedy tokens can be compared before and after a restore",
        ),
    ]
    return [message for wrong, message in rules if wrong]


def inference_server_parallel(gpus: int) -> Data:
    """Returns what vLLM is told so that a server on so many GPUs can be checkpointed: ``args`` and ``env``."""
    return {"args": parallel.arguments(gpus), "env": parallel.environment() if gpus > 1 else {}}


def inference_server_in_container(runtime: str) -> bool:
    """Tells whether a runtime starts the server from an image or a root of its own. An unknown one is refused elsewhere."""
    return runtime in RUNTIME_TRAITS and RUNTIME_TRAITS[runtime].in_container


class FilterModule:
    """Register the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filters by name."""
        return {
            "inference_server_problems": inference_server_problems,
            "inference_server_parallel": inference_server_parallel,
            "inference_server_in_container": inference_server_in_container,
        }
