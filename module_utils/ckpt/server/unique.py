# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes a restored server differ from the others that are restored from the same checkpoint.

The random numbers of its sampler, say, and secrets that each machine has of its own. The server is asked for it, before any
client is, by the requests that its description names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from ..errors import CkptError
from .client import Client

# in a text of a request's body: 32 random hexadecimal digits, or the content of a file of this node
PLACE = re.compile(r"\{(random|file:(/[^{}]+))\}")
# a text that is this alone becomes a random whole number below 2³¹
NUMBER = "{number}"


def make_unique(client: Client) -> None:
    """Sends the requests that the server's description names. Raises CkptError (server_unhealthy, bad_input)."""
    for path, body in client.spec.unique:
        client.post(path, filled(body), secret=True)


def filled(value: Any) -> Any:
    """A request's body with random values and files of this node in their places. Raises CkptError (bad_input)."""
    if isinstance(value, Mapping):
        return {key: filled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item) for item in value]
    if value == NUMBER:
        return int.from_bytes(os.urandom(4), "little") >> 1
    return PLACE.sub(_value_of, value) if isinstance(value, str) else value


def _value_of(place: re.Match[str]) -> str:
    return os.urandom(16).hex() if place[2] is None else _content(place[2])


def _content(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as source:
            return source.read().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise CkptError(
            "bad_input",
            f"server.unique names {path}, which cannot be read on this node ({said}); put it there, or correct server.unique.",
        ) from error
