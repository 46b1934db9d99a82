# SPDX-License-Identifier: GPL-3.0-or-later
"""What all groups of a server's GPUs share: let go of before a checkpoint, made anew after it.

The driver checkpoints a process that shares GPU memory with another, and cannot restore it. vLLM shares some in three
places: buffers of its all-reduce, communicators of NCCL, and process groups of PyTorch, which hold NCCL as well. A server
with one GPU has none of them, and pays nothing here.

Written against vLLM 0.25.1 and PyTorch 2.11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.distributed import parallel_state
from vllm.logger import init_logger

from gpuckpt_vllm.communicator import CheckpointCommunicator
from gpuckpt_vllm.gloo import GlooRanks
from gpuckpt_vllm.peers import map_all, release_all, step
from gpuckpt_vllm.ranks import Alone, Ranks

logger = init_logger("vllm.gpuckpt")


class Groups:
    """All groups of this worker with more than one GPU."""

    def __init__(self) -> None:
        known = (reference() for reference in parallel_state._groups.values())
        self._coordinators = [group for group in known if group is not None and group.world_size > 1]
        self.ranks: Ranks = Alone()
        if self._coordinators:
            self.ranks = GlooRanks(parallel_state.get_world_group().cpu_group)
        self._is_released = False
        self._released_pytorch: list[Any] = []

    def release(self) -> None:
        """Lets go of all shared memory, on all ranks.

        :raises RankError: on every rank, when it fails on one. All is as before then.
        """
        if not self._coordinators or self._is_released:
            return
        step(self.ranks, "the checks before the release of NCCL", self._refuse)
        live = self._live_groups_of_pytorch()
        step(self.ranks, "the end of what the GPU works on", torch.cuda.synchronize)
        self._is_released = True
        try:
            step(self.ranks, "the release of NCCL", lambda: self._disconnect(live))
            step(self.ranks, "the release of buffers", self._release_buffers)
        except BaseException:
            self.rebuild()
            raise

    def rebuild(self) -> None:
        """Makes all of it anew, on all ranks. Raises RankError on every rank, when it fails on one."""
        if not self._is_released:
            return
        # A group's own votes are within: one that fails in one group is an error of the ranks of all.
        step(self.ranks, "making buffers anew", self._map_buffers)
        step(self.ranks, "connecting NCCL anew", self._reconnect)
        step(self.ranks, "making groups of PyTorch anew", self._remake_groups_of_pytorch)
        self._is_released = False

    def _communicators(self) -> list[CheckpointCommunicator]:
        found = (group.device_communicator for group in self._coordinators)
        return [one for one in found if isinstance(one, CheckpointCommunicator)]

    def _refuse(self) -> None:
        for group in self._coordinators:
            communicator = group.device_communicator
            if communicator is not None and not isinstance(communicator, CheckpointCommunicator):
                raise RuntimeError(
                    f"the group {group.unique_name} has a {type(communicator).__name__}, which cannot let go of its "
                    "communicators: is another plugin loaded after gpuckpt's?"
                )
            objection = communicator.objection() if communicator is not None else ""
            if objection:
                raise RuntimeError(f"the group {group.unique_name} cannot be released: {objection}")
        ours = {id(group.device_group) for group in self._coordinators}
        for group, name in torch.distributed.distributed_c10d._world.pg_names.items():
            if id(group) not in ours and _is_connected(group):
                raise RuntimeError(
                    f"the process group {name} of PyTorch holds NCCL, and belongs to no coordinator of vLLM's"
                )

    # A new group of PyTorch is made by all ranks of the server, whether they are in it or not.
    def _live_groups_of_pytorch(self) -> list[Any]:
        flags = bytes(_is_connected(group.device_group) for group in self._coordinators)
        everyone = self.ranks.gather(flags)
        return [group for number, group in enumerate(self._coordinators) if any(one[number] for one in everyone)]

    def _disconnect(self, live: list[Any]) -> None:
        self._released_pytorch = []
        for communicator in self._communicators():
            if communicator.nccl is not None:
                communicator.nccl.disconnect()
        for group in live:
            torch.distributed.destroy_process_group(group.device_group)
            self._released_pytorch.append(group)

    def _release_buffers(self) -> None:
        for communicator in self._communicators():
            release_all(communicator.memories)

    def _map_buffers(self) -> None:
        self._release_buffers()  # what a release that failed has left
        for communicator in self._communicators():
            map_all(communicator.memories, GlooRanks(communicator.cpu_group))

    def _reconnect(self) -> None:
        for communicator in self._communicators():
            if communicator.nccl is not None:
                communicator.nccl.reconnect(GlooRanks(communicator.cpu_group))

    def _remake_groups_of_pytorch(self) -> None:
        while self._released_pytorch:
            group = self._released_pytorch.pop(0)
            group.device_group = group.make_sibling_device_group()
            if group.device_communicator is not None:
                group.device_communicator.device_group = group.device_group


def _is_connected(group: Any) -> bool:
    """Whether a process group of PyTorch has communicators of NCCL by now: they are made with its first operation."""
    try:
        backend = group._get_backend(torch.device("cuda"))
    except RuntimeError:
        return False
    told: Callable[[], bool] | None = getattr(backend, "_is_initialized", None)
    return "NCCL" in type(backend).__name__ and (told is None or bool(told()))
