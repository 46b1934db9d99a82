# SPDX-License-Identifier: GPL-3.0-or-later
"""One rank of a server, on the fake driver: maps memory of all ranks as its standard input says, and tells what it sees.

Its group is a connection to the test, which hands on what every rank says: gloo would need PyTorch.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
from pathlib import Path

PLUGIN = Path(__file__).resolve().parents[2] / "roles" / "inference_server" / "files" / "vllm_plugin"
sys.path.insert(0, str(PLUGIN))

from gpuckpt_vllm import peers, ranks
from gpuckpt_vllm.driver import driver
from wire import receive, send

SIZE = 3 * 4096


class Group:
    """The group as this rank sees it."""

    def __init__(self, rank: int, size: int, connection: socket.socket) -> None:
        self.rank, self.size, self._connection = rank, size, connection
        connection.settimeout(float(os.environ["RANK_LIMIT_S"]))

    def gather(self, word: bytes) -> list[bytes]:
        try:
            send(self._connection, word)
            return [receive(self._connection) for _ in range(self.size)]
        except OSError as error:
            raise ranks.RankError(f"a rank says nothing in time: {error}") from error


def main() -> None:
    rank, size, descriptor = (int(word) for word in sys.argv[1:])
    group = Group(rank, size, socket.socket(fileno=descriptor))
    peers.PATIENCE_S = float(os.environ["RANK_LIMIT_S"])
    driver().use_context(0xC0FFEE)
    memories = [peers.PeerMemory(SIZE, rank, size) for _ in range(2)]
    for line in sys.stdin:
        word, *arguments = line.split()
        told: dict[str, object] = {}
        try:
            if word == "map":
                peers.map_all(memories, group)
            elif word == "write":
                for number, memory in enumerate(memories):
                    ctypes.memset(memory.addresses[rank], 10 * (rank + 1) + number, SIZE)
            elif word == "read":
                told["seen"] = [[ctypes.string_at(address, SIZE)[-1] for address in one.addresses] for one in memories]
            elif word == "release":
                peers.release_all(memories)
            elif word == "refuse":
                os.environ["GPUCKPT_FAKE_REFUSE"] = arguments[0] if arguments else ""
            elif word == "end":
                os._exit(1)
        except ranks.RankError as error:
            told["error"] = str(error)
        maps = Path("/proc/self/maps").read_text()
        told["mapped"] = maps.count("fake GPU memory")
        told["descriptors"] = len(os.listdir("/proc/self/fd"))
        told["addresses"] = [memory.addresses for memory in memories]
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
