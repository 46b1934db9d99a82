# SPDX-License-Identifier: GPL-3.0-or-later
"""A sleep-mode backend for vLLM that makes an engine small for a checkpoint.

vLLM's own backend knows two levels, and both cost a checkpoint dearly. Level 1 copies the weights into pinned host memory,
which CRIU restores as shared memory in one stream. Level 2 loses them. This backend keeps both as they are and adds:

    level 3   release the KV cache, leave the weights on the GPU: nothing is copied at all
    level 4   write the weights to a file in GPUCKPT_STAGING_DIR and release all; waking takes them from a program that brought
              them to the GPU meanwhile (prefetch.py), or copies them back at the speed of the bus (staging.py), so neither
              CRIU nor the driver touches them

Every level also gives back what the context itself holds for the stacks of kernels, 264 MiB on an H100. It lets go of what
the GPUs of a server share (groups.py). Waking brings back whatever is asleep. What fails on one GPU fails on all of them,
and then the server is as it was before. Written against vLLM 0.25.1.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import time
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from vllm.device_allocator import get_mem_allocator_instance
from vllm.device_allocator.cumem import create_and_map, unmap_and_release
from vllm.device_allocator.sleep_mode_backend import CuMemBackend
from vllm.logger import init_logger

from gpuckpt_vllm import handover
from gpuckpt_vllm.driver import STACK_SIZE, driver
from gpuckpt_vllm.ranks import Alone, agree
from gpuckpt_vllm.staging import Layout, StagedWeights

# below vLLM's own name, so that its logging configuration covers it
logger = init_logger("vllm.gpuckpt")

DROP_KV_CACHE = 3
STAGE_WEIGHTS = 4
WEIGHTS = "weights"
KV_CACHE = "kv_cache"
GRAPHS = (
    "default"  # what vLLM's allocator calls all that it was not told the use of: graph_memory.py alone allocates so
)
STAGED = (WEIGHTS, GRAPHS)  # in a weights file
STAGING_DIR = "GPUCKPT_STAGING_DIR"


class CheckpointBackend(CuMemBackend):
    """vLLM's allocator, with the levels that suit a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self._staged: StagedWeights | None = None
        self._stack_bytes: int | None = None
        self._shared = _shared_by_gpus()

    def suspend(self, level: int = 1) -> None:
        """Releases GPU memory; see the module's text for the levels.

        :raises RuntimeError: when it cannot, on this GPU or another of the server's; all is as before then
        :raises OSError: likewise
        """
        began = time.monotonic()
        torch.cuda.synchronize()
        self._shared.release()
        problem: Exception | None = None
        try:
            self._release_memory(level)
        except Exception as error:
            problem = error
        try:
            agree(self._shared.ranks, problem, f"sleep at level {level}")
        except Exception:
            self.resume()
            raise
        free, total = torch.cuda.mem_get_info()
        logger.info(
            "gpuckpt: level %d took %.3f s, %d bytes of the GPU are in use, %d of them by PyTorch's own allocator",
            level,
            time.monotonic() - began,
            total - free,
            torch.cuda.memory_reserved(),
        )

    def _release_memory(self, level: int) -> None:
        if level in (DROP_KV_CACHE, STAGE_WEIGHTS):
            self._state = "SUSPENDED"
            if level == STAGE_WEIGHTS:
                self._stage()
                self._release(*STAGED)
            self._release(KV_CACHE)
            torch.cuda.empty_cache()
        else:
            super().suspend(level)
        self._release_stacks()

    def resume(self, tags: list[str] | None = None) -> None:
        """Brings back what is asleep, of the given tags or of all.

        :raises RuntimeError: when it cannot, on this GPU or another of the server's
        :raises OSError: likewise
        """
        self._state = "RESUMING"
        began = time.monotonic()
        self._shared.rebuild()
        rebuilt = time.monotonic()
        problem: Exception | None = None
        try:
            self._bring_back(tags)
        except Exception as error:
            problem = error
        agree(self._shared.ranks, problem, "waking")
        self._state = "RUNNING"
        if self._shared.ranks.size > 1:
            logger.info(
                "gpuckpt: what GPUs share made anew in %.3f s, awake after %.3f s",
                rebuilt - began,
                time.monotonic() - began,
            )

    def _bring_back(self, tags: list[str] | None) -> None:
        began = time.monotonic()
        self._restore_stacks()
        staged = self._staged if tags is None or WEIGHTS in tags else None
        for pointer, data in self._allocations(tags):
            if data.is_asleep and not (staged and data.tag in STAGED):
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
    def _allocations(tags: Collection[str] | None) -> list[tuple[int, Any]]:
        known = sorted(get_mem_allocator_instance().pointer_to_data.items())
        if tags is None:
            return known
        # vLLM knows no tag of the graphs' memory: it goes with the weights
        chosen = {*tags, *([GRAPHS] if WEIGHTS in tags else [])}
        return [(pointer, data) for pointer, data in known if data.tag in chosen]

    def _stage(self) -> None:
        folder = os.environ.get(STAGING_DIR)
        if not folder:
            raise RuntimeError(
                f"{STAGING_DIR} is not set: level {STAGE_WEIGHTS} needs a folder for the weights, on a tmpfs"
            )
        handle, name = tempfile.mkstemp(prefix="weights-", suffix=".bin", dir=folder)
        os.close(handle)
        allocations = self._allocations(STAGED)
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
        allocations = self._allocations(STAGED)
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
        for _, data in self._allocations(STAGED):
            if data.is_asleep:
                create_and_map(data.handle)
                data.is_asleep = False
        staged.read()

    def _release(self, *tags: str) -> None:
        """Gives the physical memory of the allocations of some tags back."""
        for _, data in self._allocations(tags):
            if not data.is_asleep:
                unmap_and_release(data.handle)
                data.is_asleep = True


class _NothingShared:
    """What a server with one GPU shares between its GPUs."""

    ranks = Alone()

    def release(self) -> None:
        """Does nothing."""

    def rebuild(self) -> None:
        """Does nothing."""


def _shared_by_gpus() -> Any:
    """What is let go of and made anew around a checkpoint: groups.Groups, imported only where there are several GPUs."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        return import_module("gpuckpt_vllm.groups").Groups()
    return _NothingShared()
