# SPDX-License-Identifier: GPL-3.0-or-later
"""A sleep-mode backend for vLLM that makes an engine small for a checkpoint.

vLLM's own backend knows two levels, and both cost a checkpoint dearly: level 1 copies the weights into pinned host memory,
which CRIU restores as shared memory in one stream; level 2 loses them. This backend keeps both as they are and adds:

    level 3   release the KV cache, leave the weights on the GPU: nothing is copied at all
    level 4   write the weights to a file in GPUCKPT_STAGING_DIR and release all; waking copies them back at the speed of
              the bus (staging.py), so neither CRIU nor the driver touches them

Waking brings back whatever is asleep. Written against vLLM 0.25.1.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from vllm.device_allocator import get_mem_allocator_instance
from vllm.device_allocator.cumem import create_and_map, unmap_and_release
from vllm.device_allocator.sleep_mode_backend import CuMemBackend
from vllm.distributed.device_communicators.cuda_wrapper import CudaRTLibrary
from vllm.logger import init_logger

from gpuckpt_vllm.staging import StagedWeights

# below vLLM's own name, so that its logging configuration covers it
logger = init_logger("vllm.gpuckpt")

DROP_KV_CACHE = 3
STAGE_WEIGHTS = 4
WEIGHTS = "weights"
KV_CACHE = "kv_cache"
STAGING_DIR = "GPUCKPT_STAGING_DIR"


class CheckpointBackend(CuMemBackend):
    """vLLM's allocator, with the levels that suit a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self._staged: StagedWeights | None = None
        self._copy = CudaRTLibrary().cudaMemcpy

    def suspend(self, level: int = 1) -> None:
        """Release GPU memory; see the module's text for the levels."""
        if level not in (DROP_KV_CACHE, STAGE_WEIGHTS):
            super().suspend(level)
            return
        self._state = "SUSPENDED"
        began = time.monotonic()
        released = 0
        if level == STAGE_WEIGHTS:
            self._stage()
            released += self._release(WEIGHTS)
        released += self._release(KV_CACHE)
        torch.cuda.empty_cache()
        logger.info("gpuckpt: level %d released %d bytes in %.3f s", level, released, time.monotonic() - began)

    def resume(self, tags: list[str] | None = None) -> None:
        """Bring back what is asleep, of the given tags or of all."""
        self._state = "RESUMING"
        began = time.monotonic()
        for pointer, data in self._allocations(tags):
            if data.is_asleep:
                create_and_map(data.handle)
                data.is_asleep = False
                self._copy_back(pointer, data)
        mapped = time.monotonic()
        if self._staged is not None and (tags is None or WEIGHTS in tags):
            self._staged.read()
            self._staged = None
        self._state = "RUNNING"
        logger.info(
            "gpuckpt: memory back in %.3f s, staged weights in %.3f s", mapped - began, time.monotonic() - mapped
        )

    def _copy_back(self, pointer: int, data: Any) -> None:
        """Undo level 1 for one allocation."""
        if data.cpu_backup_tensor is not None:
            backup = data.cpu_backup_tensor
            self._copy(pointer, backup.data_ptr(), backup.numel() * backup.element_size())
            data.cpu_backup_tensor = None

    @staticmethod
    def _allocations(tags: list[str] | None) -> list[tuple[int, Any]]:
        known = get_mem_allocator_instance().pointer_to_data  # type: ignore[attr-defined]
        return [(pointer, data) for pointer, data in sorted(known.items()) if tags is None or data.tag in tags]

    def _stage(self) -> None:
        folder = os.environ.get(STAGING_DIR)
        if not folder:
            raise RuntimeError(
                f"{STAGING_DIR} is not set: level {STAGE_WEIGHTS} needs a folder for the weights, on a tmpfs"
            )
        handle, name = tempfile.mkstemp(prefix="weights-", suffix=".bin", dir=folder)
        os.close(handle)
        sizes = [(pointer, data.handle[1]) for pointer, data in self._allocations([WEIGHTS])]
        staged = StagedWeights(Path(name), sizes)
        try:
            staged.write()
        except BaseException:
            staged.path.unlink(missing_ok=True)
            raise
        self._staged = staged

    def _release(self, tag: str) -> int:
        """Give the physical memory of the allocations of one tag back; return its bytes."""
        released = 0
        for _, data in self._allocations([tag]):
            if not data.is_asleep:
                unmap_and_release(data.handle)
                data.is_asleep = True
                released += data.handle[1]
        return released
