# SPDX-License-Identifier: GPL-3.0-or-later
"""One HTTP request and its answer, out of the standard library.

Its HTTP takes 25 ms to load. So it is loaded when it is needed, which for a client who waits is while CRIU works.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

PIECE_BYTES = 64 << 10
HEADERS = {"Connection": "close", "Accept": "*/*", "Accept-Encoding": "identity"}


def load() -> ModuleType:
    """Returns Python's module for HTTP."""
    return import_module("http.client")


class ExchangeError(Exception):
    """A request that got no answer, or only a part of one."""


class Answer:
    """An answer whose head has come."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status = response.status
        self._response = response

    def pieces(self) -> Iterator[bytes]:
        """The content as it comes. Raises ExchangeError where it breaks off."""
        try:
            while piece := self._response.read1(PIECE_BYTES):
                yield piece
            if self._response.length:
                raise ExchangeError(f"{self._response.length} bytes of the answer are missing")
        except (OSError, load().HTTPException, ValueError) as error:
            raise _explained(error) from error

    def close(self) -> None:
        """Ends it, read or not."""
        self._response.close()


@contextmanager
def ask(
    host: str, port: int, method: str, path: str, body: Any, connect_timeout_s: float, timeout_s: float
) -> Iterator[Answer]:
    """Sends a request on a connection of its own, which is closed at the end; a body goes out as JSON.

    :param timeout_s: how long the server may be silent
    :raises ExchangeError: no head of an answer came
    """
    connection = load().HTTPConnection(host.strip("[]"), port, timeout=connect_timeout_s)
    try:
        answer = _answer(connection, method, path, body, timeout_s)
        # the socket is the answer's, not the connection's, where the server said that it would close it
        with closing(answer):
            yield answer
    finally:
        connection.close()


def _answer(connection: HTTPConnection, method: str, path: str, body: Any, timeout_s: float) -> Answer:
    content = None if body is None else json.dumps(body).encode()
    headers = HEADERS if content is None else {**HEADERS, "Content-Type": "application/json"}
    try:
        connection.connect()
        connection.sock.settimeout(timeout_s)
        # a server that has not read the whole request may have answered it all the same
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, content, headers)
        response = connection.getresponse()
        told = response.getheader("Content-Length")
        if told is not None and response.length is None and not response.chunked:
            response.close()
            raise ExchangeError(f"the answer's Content-Length is {told:.40}")
    except (OSError, load().HTTPException, ValueError) as error:
        raise _explained(error) from error
    return Answer(response)


def _explained(error: Exception) -> ExchangeError:
    """What went wrong, in one line."""
    if isinstance(error, (socket.timeout, TimeoutError)):
        return ExchangeError("no answer in time")
    return ExchangeError(f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": "))
