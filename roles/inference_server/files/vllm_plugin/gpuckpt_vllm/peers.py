# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory that the GPUs of a server read from one another, at addresses that outlive a checkpoint.

The driver checkpoints memory that processes share and then cannot restore it (CUDA_ERROR_NOT_SUPPORTED, driver 580). So
nothing may be shared while a checkpoint is taken. But a CUDA graph holds the addresses that its kernels read, and a new
capture takes longer than a restore. Addresses and what is behind them are two things in the driver's virtual memory
interface. `release` gives the memory away and keeps the addresses; `map` puts fresh memory of every rank behind them.

Memory changes hands as file descriptors, through sockets in a folder that only this user can enter.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from gpuckpt_vllm import handover
from gpuckpt_vllm.driver import driver
from gpuckpt_vllm.ranks import Ranks, agree

PATIENCE_S = 20.0  # longest wait for another rank's connection or descriptors
SOCKET = "rank"  # its name in the folder of a rank
BACKLOG = 64  # nobody waits to connect: more ranks than one host has GPUs


class PeerMemory:
    """One buffer a rank, each on its own GPU; every rank maps all of them. `addresses` are this rank's, by rank."""

    def __init__(self, size: int, rank: int, count: int) -> None:
        """Reserves addresses for `count` buffers of at least `size` bytes. Raises CudaError."""
        self.rank = rank
        self.device = driver().current_device()
        granularity = driver().granularity(self.device)
        self.size = -(-size // granularity) * granularity
        self.addresses = [driver().reserve(self.size) for _ in range(count)]
        self._handles: dict[int, int] = {}
        self._mapped: set[int] = set()

    @property
    def is_mapped(self) -> bool:
        """Whether there is memory behind all addresses."""
        return len(self._mapped) == len(self.addresses)

    def create(self) -> int:
        """Fresh memory of this rank, filled with zeros; returns a descriptor of it. Raises CudaError."""
        self._put(self.rank, driver().create(self.size, self.device))
        driver().zero(self.addresses[self.rank], self.size)
        return driver().export(self._handles[self.rank])

    def take(self, rank: int, descriptor: int) -> None:
        """Maps the memory of another rank, which stays the caller's to close. Raises CudaError."""
        self._put(rank, driver().take(descriptor))

    def _put(self, rank: int, handle: int) -> None:
        self._handles[rank] = handle
        driver().map(self.addresses[rank], self.size, handle, self.device)
        self._mapped.add(rank)

    def release(self) -> None:
        """Gives all memory away, whatever part of it there is; the addresses stay. Raises CudaError."""
        for rank in sorted(self._mapped):
            driver().unmap(self.addresses[rank], self.size)
            self._mapped.remove(rank)
        for rank in sorted(self._handles):
            driver().release(self._handles.pop(rank))


def map_all(memories: Sequence[PeerMemory], ranks: Ranks) -> None:
    """Puts fresh memory behind the addresses of all, on all ranks. On an error none is left on any.

    :raises RankError: on every rank, when it fails on one
    """
    own: list[int] = []
    with ExitStack() as meanwhile:
        meanwhile.callback(handover.close_all, own)
        exchange = Exchange(meanwhile)

        def prepare() -> None:
            exchange.listen()
            own.extend(memory.create() for memory in memories)

        def take() -> None:
            for rank, descriptors in exchange.swap(own, folders, ranks.rank).items():
                for memory, descriptor in zip(memories, descriptors, strict=True):
                    memory.take(rank, descriptor)

        try:
            step(ranks, "making memory that ranks share", prepare)
            # All ranks gather equally often, whatever fails on one of them: between two votes nothing else may raise.
            folders = [Path(os.fsdecode(word)) for word in ranks.gather(os.fsencode(exchange.folder))]
            step(ranks, "mapping memory that ranks share", take)
        except BaseException:
            release_all(memories)
            raise


def release_all(memories: Sequence[PeerMemory]) -> None:
    """Gives the memory of all away. Raises CudaError."""
    for memory in memories:
        memory.release()


def step(ranks: Ranks, what: str, do: Callable[[], None]) -> None:
    """One step of this rank, and the vote on it. Raises RankError on every rank, when it fails on one."""
    problem: Exception | None = None
    try:
        do()
    except Exception as error:
        problem = error
    agree(ranks, problem, what)


class Exchange:
    """Descriptors between all ranks; what it opens is closed with the stack it is given."""

    def __init__(self, closing: ExitStack) -> None:
        self._closing = closing
        self._listening: socket.socket | None = None
        self.folder = Path("/")

    def listen(self) -> None:
        """Waits for the others from now on, in `folder`. Raises OSError."""
        self.folder = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="gpuckpt-peers-")))
        self._listening = self._closing.enter_context(socket.socket(socket.AF_UNIX))
        self._listening.bind(str(self.folder / SOCKET))
        self._listening.listen(BACKLOG)
        self._listening.settimeout(PATIENCE_S)

    def swap(self, own: Sequence[int], folders: Sequence[Path], rank: int) -> dict[int, list[int]]:
        """Gives `own` to all others; returns theirs by rank, as many of each.

        :param folders: where each rank listens
        :raises OSError: when one does not answer within PATIENCE_S, or ends
        """
        assert self._listening is not None
        asked = {other: self._ask(folder) for other, folder in enumerate(folders) if other != rank}
        for _ in asked:
            taker, _ = self._listening.accept()
            with taker:
                taker.settimeout(PATIENCE_S)
                handover.send(taker, own)
        received: dict[int, list[int]] = {}
        for other, connection in asked.items():
            received[other] = handover.take(connection, len(own))
            self._closing.callback(handover.close_all, received[other])
        return received

    def _ask(self, folder: Path) -> socket.socket:
        connection = self._closing.enter_context(socket.socket(socket.AF_UNIX))
        connection.settimeout(PATIENCE_S)
        connection.connect(str(folder / SOCKET))
        return connection
