# SPDX-License-Identifier: GPL-3.0-or-later
"""A sleep-mode backend for vLLM that makes an engine small for a checkpoint.

vLLM's own backend knows two levels, and both cost a checkpoint dearly. Level 1 copies the weights into pinned host memory,
which CRIU restores as shared memory in one stream. Level 2 loses them. This backend keeps both as they are and adds:

    level 3   release the KV cache, leave the weights on the GPU: nothing is copied at all
    level 4   write the weights to a file in GPUCKPT_STAGING_DIR and release all; waking takes them from a program that brought
              them to the GPU meanwhile (prefetch.py), or copies them back at the speed of the bus (staging.py), so neither
              CRIU nor the driver touches them

Every level also gives back what the context itself holds for the stacks of kernels, 264 MiB on an H100. Waking brings back
whatever is asleep. Written against vLLM 0.25.1.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from vllm.device_allocator import get_mem_allocator_instance
from vllm.device_allocator.cumem import create_and_map, unmap_and_release
from vllm.device_allocator.sleep_mode_backend import CuMemBackend
from vllm.logger import init_logger

from gpuckpt_vllm import handover
from gpuckpt_vllm.driver import STACK_SIZE, driver
from gpuckpt_vllm.staging import Layout, StagedWeights

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
        self._stack_bytes: int | None = None

    def suspend(self, level: int = 1) -> None:
        """Releases GPU memory; see the module's text for the levels."""
        began = time.monotonic()
        torch.cuda.synchronize()
        if level in (DROP_KV_CACHE, STAGE_WEIGHTS):
            self._state = "SUSPENDED"
            if level == STAGE_WEIGHTS:
                self._stage()
                self._release(WEIGHTS)
            self._release(KV_CACHE)
            torch.cuda.empty_cache()
        else:
            super().suspend(level)
        self._release_stacks()
        free, total = torch.cuda.mem_get_info()
        logger.info(
            "gpuckpt: level %d took %.3f s, %d bytes of the GPU are in use",
            level,
            time.monotonic() - began,
            total - free,
        )

    def resume(self, tags: list[str] | None = None) -> None:
        """Brings back what is asleep, of the given tags or of all."""
        self._state = "RESUMING"
        began = time.monotonic()
        self._restore_stacks()
        staged = self._staged if tags is None or WEIGHTS in tags else None
        for pointer, data in self._allocations(tags):
            if data.is_asleep and not (staged and data.tag == WEIGHTS):
                create_and_map(data.handle)
                data.is_asleep = False
                self._copy_back(pointer, data)
        mapped = time.monotonic()
        how = "none"
        if staged is not None:
            how = "prefetched"
            if not self._take_prefetched(staged):
                how = "read"
                self._read(staged)
            self._staged = None
        self._state = "RUNNING"
        logger.info(
            "gpuckpt: memory back in %.3f s, staged weights (%s) in %.3f s",
            mapped - began,
            how,
            time.monotonic() - mapped,
        )

    # Kernels get their stacks from one block that the context sizes for the whole GPU. Some (recursion, function pointers) rely
    # on the limit itself, so it must be as before when they run again.
    def _release_stacks(self) -> None:
        if self._stack_bytes is None:
            self._stack_bytes = driver().limit(STACK_SIZE)
            driver().set_limit(STACK_SIZE, 0)

    def _restore_stacks(self) -> None:
        if self._stack_bytes is not None:
            driver().set_limit(STACK_SIZE, self._stack_bytes)
            self._stack_bytes = None

    @staticmethod
    def _copy_back(pointer: int, data: Any) -> None:
        """Undoes level 1 for one allocation."""
        if data.cpu_backup_tensor is not None:
            backup = data.cpu_backup_tensor
            driver().copy_to_device(pointer, backup.data_ptr(), backup.numel() * backup.element_size())
            data.cpu_backup_tensor = None

    @staticmethod
    def _allocations(tags: list[str] | None) -> list[tuple[int, Any]]:
        known = get_mem_allocator_instance().pointer_to_data
        return [(pointer, data) for pointer, data in sorted(known.items()) if tags is None or data.tag in tags]

    def _stage(self) -> None:
        folder = os.environ.get(STAGING_DIR)
        if not folder:
            raise RuntimeError(
                f"{STAGING_DIR} is not set: level {STAGE_WEIGHTS} needs a folder for the weights, on a tmpfs"
            )
        handle, name = tempfile.mkstemp(prefix="weights-", suffix=".bin", dir=folder)
        os.close(handle)
        allocations = self._allocations([WEIGHTS])
        layout = Layout(driver().uuid(driver().current_device()), tuple(data.handle[1] for _, data in allocations))
        staged = StagedWeights(Path(name), layout, [pointer for pointer, _ in allocations])
        try:
            staged.write()
        except BaseException:
            staged.discard()
            raise
        self._staged = staged

    def _take_prefetched(self, staged: StagedWeights) -> bool:
        """Maps what another process has brought to the GPU; says whether there was any.

        Whatever goes wrong, what is mapped by then stays: reading the file fills it.
        """
        allocations = self._allocations([WEIGHTS])
        try:
            descriptors = handover.receive(staged.path, len(allocations))
        except OSError as error:
            logger.warning("gpuckpt: nothing prefetched: %s", error)
            return False
        if descriptors is None:
            return False
        device = driver().current_device()
        try:
            for (pointer, data), descriptor in zip(allocations, descriptors, strict=True):
                handle = driver().take(descriptor)
                driver().map(pointer, data.handle[1], handle, device)
                # where vLLM's allocator keeps it, to unmap and release it as its own
                ctypes.c_uint64.from_address(data.handle[3]).value = handle
                data.is_asleep = False
        except RuntimeError as error:
            logger.warning("gpuckpt: what was prefetched cannot be taken: %s", error)
            return False
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _read(self, staged: StagedWeights) -> None:
        for _, data in self._allocations([WEIGHTS]):
            if data.is_asleep:
                create_and_map(data.handle)
                data.is_asleep = False
        staged.read()

    def _release(self, tag: str) -> None:
        """Gives the physical memory of the allocations of one tag back."""
        for _, data in self._allocations([tag]):
            if not data.is_asleep:
                unmap_and_release(data.handle)
                data.is_asleep = True
