# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM's communicator for a group of GPUs, able to let go of what its ranks share and to make it anew.

Three things differ from vLLM's own, which stays the base class of each:

    all-reduce   Its buffers lie in memory of peers.py, at addresses that outlive a checkpoint. A graph copies its input
                 there, where vLLM would register the input's own memory with the other ranks.
    all-gather   What fits goes through the same buffers, so that the first tokens after a restore need no NCCL.
    NCCL         What does not fit goes through pynccl. It is connected anew in the background, or when it is needed.

Written against vLLM 0.25.1; imported only by its workers.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from vllm.distributed.device_communicators import custom_all_reduce, pynccl
from vllm.distributed.device_communicators.cuda_communicator import CudaCommunicator
from vllm.distributed.device_communicators.pynccl_allocator import is_symmetric_memory_enabled
from vllm.logger import init_logger

from gpuckpt_vllm.gloo import GlooRanks
from gpuckpt_vllm.later import Later, Ready
from gpuckpt_vllm.peers import PeerMemory, map_all, release_all
from gpuckpt_vllm.ranks import Ranks

logger = init_logger("vllm.gpuckpt")

# Larger inputs go through NCCL, in prefills alone: graphs of vLLM's default sizes stay below it.
ALL_REDUCE_BYTES = 32 << 20
# How long after waking NCCL is connected if nobody has needed it: the first tokens are out then.
NCCL_DELAY_S = 1.0
NCCL_LIMIT_S = 60.0
# RankData of vLLM's custom all-reduce: an address for each of at most eight ranks
RANK_DATA_ADDRESSES = 8


class FixedAllReduce(custom_all_reduce.CustomAllreduce):
    """vLLM's custom all-reduce in memory that can be given away and put back."""

    memories: list[PeerMemory]

    def __init__(
        self, group: Any, device: Any, max_size: int = ALL_REDUCE_BYTES, symm_mem_enabled: bool = False
    ) -> None:
        """As the base class; `max_size` is what an input may have, in bytes."""
        self.memories = []
        super().__init__(group, device, max_size, symm_mem_enabled)
        if not self.disabled:
            self._name_buffers_for_graphs()

    # A static method in the base class, which calls it through `self`.
    def create_shared_buffer(self, size_in_bytes: int, group: Any = None, uncached: bool | None = False) -> list[int]:
        """Memory of every rank, mapped by all; returns its addresses by rank."""
        ranks = GlooRanks(group or self.group)
        memory = PeerMemory(size_in_bytes, ranks.rank, ranks.size)
        map_all([memory], ranks)
        self.memories.append(memory)
        return list(memory.addresses)

    def free_shared_buffer(self, pointers: list[int], group: Any = None, rank: int | None = None) -> None:
        """Gives all memory away; called once for each buffer, when the process ends."""
        with suppress(RuntimeError):  # its context may have ended before
            release_all(self.memories)

    def _name_buffers_for_graphs(self) -> None:
        """Tells the kernels of graphs where their input is.

        A kernel that is captured reads the addresses of its input from the next row of `rank_data`. vLLM fills the row
        after the capture, with the addresses of the input itself. Here the input is always the shared buffer.
        """
        addresses = [*self.buffer_ptrs, *[0] * (RANK_DATA_ADDRESSES - len(self.buffer_ptrs))]
        row = torch.tensor(addresses, dtype=torch.int64, device=self.device)
        rows = self.rank_data.view(torch.int64).view(-1, RANK_DATA_ADDRESSES)
        rows.copy_(row.expand_as(rows))

    def register_graph_buffers(self) -> None:
        """Does nothing: graphs read the shared buffer alone."""

    def all_reduce(
        self, inp: torch.Tensor, *, out: torch.Tensor | None = None, registered: bool = False
    ) -> torch.Tensor:
        """The sum over all ranks; the input is copied into the shared buffer, in a graph as well."""
        return super().all_reduce(inp, out=out, registered=False)


class LatePynccl(pynccl.PyNcclCommunicator):
    """pynccl, whose communicator can be destroyed, and connected again when it is needed."""

    # whether a graph holds its operations: they would use a communicator that is gone
    is_in_graphs = False

    @property
    def comm(self) -> Any:
        """The communicator of NCCL; connected by now, or an error."""
        if torch.cuda.is_current_stream_capturing():
            self.is_in_graphs = True
        return self._connection.get(NCCL_LIMIT_S)

    @comm.setter
    def comm(self, value: Any) -> None:
        self._connection: Later[Any] | Ready[Any] = Ready(value)

    @property
    def is_usable(self) -> bool:
        """Whether there is NCCL at all; it is switched off for a group of one."""
        return bool(self.available and not self.disabled)

    def disconnect(self) -> None:
        """Destroys the communicator. Every rank must. Raises RuntimeError, or TimeoutError."""
        with torch.accelerator.device_index(self.device.index):
            self.nccl.ncclCommDestroy(self._connection.get(NCCL_LIMIT_S))
        self._connection = Ready(None)

    def reconnect(self, ranks: Ranks) -> None:
        """Connects again, in the background. Every rank must. Raises RankError.

        A communicator that this rank still has, after a release that failed on another one, is given up. One that
        is still being made is waited for: its thread would go on with the identifier of the next one.
        """
        with suppress(Exception):
            left = self._connection.get(NCCL_LIMIT_S)
            if left is not None:
                self.nccl.ncclCommAbort(left)
        offered = bytes(self.nccl.ncclGetUniqueId().internal) if self.rank == 0 else b""
        ctypes.memmove(ctypes.addressof(self.unique_id), ranks.gather(offered)[0], ctypes.sizeof(self.unique_id))
        self._connection = Later(self._connect, NCCL_DELAY_S)

    def _connect(self) -> Any:
        try:
            with torch.accelerator.device_index(self.device.index):
                comm = self.nccl.ncclCommInitRank(self.world_size, self.unique_id, self.rank)
                self._warm_up(comm)
        except BaseException as error:
            logger.error("gpuckpt: NCCL was not connected again: %s", error)
            raise
        logger.info("gpuckpt: NCCL is connected again")
        return comm

    def _warm_up(self, comm: Any) -> None:
        """The first operation makes the connections; it is not to be somebody's token."""
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            data = torch.zeros(1, device=self.device)
        address = pynccl.buffer_type(data.data_ptr())
        kind = pynccl.ncclDataTypeEnum.from_torch(data.dtype)
        total = pynccl.ncclRedOpTypeEnum.from_torch(torch.distributed.ReduceOp.SUM)
        self.nccl.ncclAllReduce(address, address, 1, kind, total, comm, pynccl.cudaStream_t(stream.cuda_stream))
        stream.synchronize()


class CheckpointCommunicator(CudaCommunicator):
    """vLLM's communicator of one group; groups.py lets go of its parts and makes them anew."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """As the base class, which makes its all-reduce and its NCCL from the classes above."""
        with (
            replaced(custom_all_reduce, "CustomAllreduce", FixedAllReduce),
            replaced(pynccl, "PyNcclCommunicator", LatePynccl),
        ):
            super().__init__(*arguments, **named)

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """The inputs of all ranks, one after another along `dim`."""
        if self.pynccl_comm is None or self.pynccl_comm.disabled:
            return super().all_gather(input_, dim)
        dim = dim % input_.dim()
        whole = self._gather_by_sum(input_)
        if whole is None:
            whole = torch.empty((self.world_size, *input_.shape), dtype=input_.dtype, device=input_.device)
            self.pynccl_comm.all_gather(whole, input_.contiguous())
        shape = list(input_.shape)
        shape[dim] *= self.world_size
        return whole.movedim(0, dim).reshape(shape)

    def _gather_by_sum(self, input_: torch.Tensor) -> torch.Tensor | None:
        """Every rank adds its part to the zeros of the others: exact. None where the all-reduce does not take it."""
        reduce = self.ca_comm
        size = input_.numel() * input_.element_size() * self.world_size
        if reduce is None or reduce.disabled or not input_.is_floating_point() or size >= reduce.max_size:
            return None
        parts = torch.zeros((self.world_size, *input_.shape), dtype=input_.dtype, device=input_.device)
        parts[self.rank_in_group] = input_
        return reduce.custom_all_reduce(parts)

    def objection(self) -> str:
        """Why what its ranks share cannot be let go of; empty if it can."""
        if self.symm_mem_comm is not None and not self.symm_mem_comm.disabled:
            return "symmetric memory is on: set VLLM_ALLREDUCE_USE_SYMM_MEM=0"
        if self.fi_ar_comm is not None and not self.fi_ar_comm.disabled:
            return "FlashInfer's all-reduce is on: set VLLM_ALLREDUCE_USE_FLASHINFER=0"
        if os.environ.get("NCCL_NVLS_ENABLE") != "0":
            return "NCCL may take multicast memory of NVLink, on which the driver's checkpoint hangs: set NCCL_NVLS_ENABLE=0"
        if is_symmetric_memory_enabled():
            return "NCCL uses symmetric memory: set VLLM_USE_NCCL_SYMM_MEM=0"
        if isinstance(self.pynccl_comm, LatePynccl) and self.pynccl_comm.is_in_graphs:
            return (
                f"graphs hold operations of NCCL, since they reduce {ALL_REDUCE_BYTES >> 20} MiB or more at a time: lower "
                "--max-cudagraph-capture-size, or leave --disable-custom-all-reduce out"
            )
        if self.all2all_manager is not None and type(self.all2all_manager).__name__ != "AgRsAll2AllManager":
            return f"{type(self.all2all_manager).__name__} is not known: set --all2all-backend=allgather_reducescatter"
        return ""

    @property
    def memories(self) -> list[PeerMemory]:
        """The buffers of the all-reduce."""
        return self.ca_comm.memories if isinstance(self.ca_comm, FixedAllReduce) else []

    @property
    def nccl(self) -> LatePynccl | None:
        """NCCL, where there is any."""
        comm = self.pynccl_comm
        return comm if isinstance(comm, LatePynccl) and comm.is_usable else None


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Puts another class in the place of one of a module's."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
