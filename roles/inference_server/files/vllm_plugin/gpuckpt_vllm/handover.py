# SPDX-License-Identifier: GPL-3.0-or-later
"""How GPU memory changes hands: file descriptors through a socket next to the weights file.

Whoever has the weights on the GPU listens there. Whoever wants them connects, and receives one descriptor for each
allocation, in the order of the layout. Nobody listening, or an end before the last one, means: read the file yourself.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from os import close
from pathlib import Path

AT_ONCE = 64  # descriptors in one message; the kernel takes 253
PATIENCE_S = 30.0  # longest wait for one message: the other side may still be copying
BACKLOG = 1


def address(weights: Path) -> Path:
    """The socket that belongs to a weights file."""
    return weights.with_suffix(".socket")


def listen(weights: Path) -> socket.socket:
    """Offers the memory of a weights file.

    :raises FileExistsError: when somebody else offers it already
    :raises OSError: when the socket cannot be made
    """
    path = address(weights)
    with socket.socket(socket.AF_UNIX) as probe, suppress(FileNotFoundError, ConnectionRefusedError):
        probe.connect(str(path))
        raise FileExistsError(f"another process offers {weights} already")
    # It gets its name when it listens: an engine that comes in between would be refused, and not wait.
    unready = path.with_suffix(".unready")
    unready.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(unready))
    listening.listen(BACKLOG)
    unready.replace(path)
    return listening


def give(listening: socket.socket, descriptors: list[int], patience_s: float) -> None:
    """Hands all descriptors to the first who connects. Raises TimeoutError when nobody does in time."""
    listening.settimeout(patience_s)
    taker, _ = listening.accept()
    with taker:
        taker.settimeout(patience_s)
        send(taker, descriptors)


def receive(weights: Path, count: int) -> list[int] | None:
    """Descriptors of the allocations of a weights file, to be closed by the caller; None where nobody offers them.

    :raises OSError: when the other side ended before the last one, or takes too long
    """
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(PATIENCE_S)
        try:
            asking.connect(str(address(weights)))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        return take(asking, count)


def send(connection: socket.socket, descriptors: Sequence[int]) -> None:
    """Sends copies of descriptors. Raises OSError."""
    for first in range(0, len(descriptors), AT_ONCE):
        socket.send_fds(connection, [b"+"], descriptors[first : first + AT_ONCE])


def take(connection: socket.socket, count: int) -> list[int]:
    """As many descriptors as were sent, to be closed by the caller.

    :raises OSError: when the other side ended before the last one, or takes longer than the connection's time limit
    """
    received: list[int] = []
    try:
        while len(received) < count:
            word, descriptors, _, _ = socket.recv_fds(connection, 1, AT_ONCE)
            received += descriptors
            if not word:
                raise ConnectionError(f"only {len(received)} of {count} allocations were handed over")
    except BaseException:
        close_all(received)
        raise
    return received


def close_all(descriptors: Iterable[int]) -> None:
    """Closes descriptors that were received or exported."""
    for descriptor in descriptors:
        close(descriptor)
