# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory of CUDA graphs in vLLM's sleep allocator, so that it is staged like weights and the driver need not carry it.

A graph keeps the buffers between its kernels for itself. They lie in a pool of PyTorch, which the driver would save and
bring back at 6 to 7 GB/s. The graph holds addresses alone, so what is behind them may be given back and come again.

Written against vLLM 0.25.1 and PyTorch 2.11.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

STAGE_GRAPHS = "GPUCKPT_STAGE_GRAPHS"  # environment: 1 to have it
POOL = "gpuckpt-graphs"


def wanted() -> bool:
    """Whether the server's environment asks for it."""
    return os.environ.get(STAGE_GRAPHS, "0") == "1"


def install(platform: Any) -> None:
    """Has the graphs of this process captured into a pool of the sleep allocator."""
    platform.get_global_graph_pool = _pool_id


def _pool_id() -> Any:
    """The identifier of the pool, which is made when it is first asked for."""
    torch = import_module("torch")
    cumem = import_module("vllm.device_allocator.cumem")
    allocator = cumem.CuMemAllocator.get_instance()
    if POOL not in allocator.allocator_and_pools:
        made = cumem.get_pluggable_allocator(allocator.python_malloc_callback, allocator.python_free_callback)
        # where vLLM keeps its own pools, so that it releases this one in the same order when it ends
        allocator.allocator_and_pools[POOL] = torch.cuda.memory.MemPool(made._allocator), made
    return allocator.allocator_and_pools[POOL][0].id
