# SPDX-License-Identifier: GPL-3.0-or-later
"""How a rank and the test talk: a word is its length and its bytes."""

from __future__ import annotations

import socket
import struct

LENGTH = struct.Struct("<I")


def send(connection: socket.socket, word: bytes) -> None:
    """Sends a word. Raises OSError."""
    connection.sendall(LENGTH.pack(len(word)) + word)


def receive(connection: socket.socket) -> bytes:
    """Returns the next word. Raises OSError when the other side ends, or takes too long."""
    (length,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
    return _exactly(connection, length)


def _exactly(connection: socket.socket, size: int) -> bytes:
    raw = b""
    while len(raw) < size:
        part = connection.recv(size - len(raw))
        if not part:
            raise ConnectionError("the other side is gone")
        raw += part
    return raw
