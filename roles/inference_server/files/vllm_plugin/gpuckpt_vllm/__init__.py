# SPDX-License-Identifier: GPL-3.0-or-later
"""Give vLLM's sleep mode the levels that suit a checkpoint (entry point group `vllm.general_plugins`).

vLLM 0.25.1 has a registry of backends but no argument to choose one. So this takes the place of the default one, whose
levels 1 and 2 it keeps. Leave it out with VLLM_PLUGINS="".

It also takes the place of the communicator of a group of GPUs. So a server with several can let go of what they share
(communicator.py).

vLLM loads this into every one of its processes: only those that sleep import the backend, and CUDA with it. The program
prefetch.py imports the package without vLLM.
"""

from importlib import import_module
from typing import Any

from gpuckpt_vllm import graph_memory

DEFAULT_BACKEND = "cumem"
COMMUNICATOR = "gpuckpt_vllm.communicator.CheckpointCommunicator"


def register() -> None:
    """Takes the places of the default backend and communicator; may be called more than once in a process."""
    factory = import_module("vllm.device_allocator.sleep_mode_backend").SleepModeBackendFactory
    factory._registry[DEFAULT_BACKEND] = _load
    platform = import_module("vllm.platforms").current_platform
    if platform.is_cuda():
        # a class is named by its path, and imported by the workers of a server with several GPUs alone
        type(platform).get_device_communicator_cls = classmethod(lambda cls: COMMUNICATOR)
        if graph_memory.wanted():
            graph_memory.install(platform)


def _load() -> Any:
    return import_module("gpuckpt_vllm.backend").CheckpointBackend
