# SPDX-License-Identifier: GPL-3.0-or-later
"""Give vLLM's sleep mode the levels that suit a checkpoint (entry point group `vllm.general_plugins`).

vLLM 0.25.1 has a registry of backends but no argument to choose one. So this takes the place of the default one, whose
levels 1 and 2 it keeps. Leave it out with VLLM_PLUGINS="".

vLLM loads this into every one of its processes: only the one that sleeps imports the backend, and CUDA with it. The
program prefetch.py imports the package without vLLM.
"""

from importlib import import_module
from typing import Any

DEFAULT_BACKEND = "cumem"


def register() -> None:
    """Takes the default backend's place; may be called more than once in a process."""
    factory = import_module("vllm.device_allocator.sleep_mode_backend").SleepModeBackendFactory
    factory._registry[DEFAULT_BACKEND] = _load


def _load() -> Any:
    return import_module("gpuckpt_vllm.backend").CheckpointBackend
