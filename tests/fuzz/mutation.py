# SPDX-License-Identifier: GPL-3.0-or-later
"""Mutations of samples: bytes at large, and values within JSON documents. The same random source gives the same input."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

LARGEST = 1 << 18
# what has broken parsers before: numbers at edges, bytes that are no text, nesting, lengths that lie
TOKENS = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1",
    b"0",
    b"9" * 5000,
    b"18446744073709551616",
    b"4294967295",
    b"null",
    b"true",
    b"{}",
    b"[]",
    b'""',
    b'"\\ud800"',
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    "\u0663\u00b2\u2028".encode(),
    b"[" * 2000,
    b'{"a":' * 2000,
    b"\xff\xff\xff\xff",
    b"\x80" * 64,
    b"\n",
    b"\r\n\r\n",
    b" - ",
    b"../" * 8,
    b"%s%n",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    float("nan"),
    float("inf"),
    -1e308,
    1 << 64,
    10**400,
    "",
    "0",
    "-1",
    "\u0663",
    "a\0b",
    "a\nb",
    "\ud800",
    "\u2028",
    "/etc/passwd",
    "../..",
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"b": []}},
)


def mutate(random: Random, samples: Sequence[bytes]) -> bytes:
    """An input made of one sample by a few changes."""
    data = random.choice(samples)
    for _ in range(random.choice((1, 1, 2, 4, 8))):
        data = random.choice(CHANGES)(random, data, samples)
    return data[:LARGEST]


def mutate_document(random: Random, samples: Sequence[bytes]) -> bytes:
    """An input made of one JSON sample by changes of values, keys and structure; sometimes by changes of its bytes."""
    if random.random() < 0.3:
        return mutate(random, samples)
    document = json.loads(random.choice(samples))
    for _ in range(random.choice((1, 1, 2, 4))):
        document = _change_value(random, document)
    # NaN and lone surrogates are wanted
    return json.dumps(document).encode()[:LARGEST]


def _change_value(random: Random, value: Any) -> Any:
    """The value with a change somewhere within."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        changed = {**value, key: _change_value(random, value[key])}
        if random.random() < 0.15:
            del changed[key]
        if random.random() < 0.1:
            changed[random.choice(("", "unknown", "\0", "x" * 300, "\ud800"))] = random.choice(VALUES)
        return changed
    if isinstance(value, list) and value and random.random() < 0.9:
        position = random.randrange(len(value))
        changed_item = _change_value(random, value[position])
        return [*value[:position], *[changed_item] * random.choice((0, 1, 1, 1, 2, 50)), *value[position + 1 :]]
    if isinstance(value, str) and value and random.random() < 0.4:
        return mutate(random, [value.encode("utf-8", "surrogatepass")]).decode("utf-8", "surrogateescape")[:9000]
    return random.choice(VALUES)


def _span(random: Random, data: bytes) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.choice((1, 1, 2, 4, 8, 32, 256)))


def _flip(random: Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    if not data:
        return data
    position = random.randrange(len(data))
    return data[:position] + bytes([data[position] ^ 1 << random.randrange(8)]) + data[position + 1 :]


def _set(random: Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    start, end = _span(random, data)
    return data[:start] + random.randbytes(end - start) + data[end:]


def _delete(random: Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    start, end = _span(random, data)
    return data[:start] + data[end:]


def _cut(random: Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _insert(random: Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    start = random.randrange(len(data) + 1)
    return data[:start] + random.choice(TOKENS) + data[start:]


def _replace(random: Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    start, end = _span(random, data)
    return data[:start] + random.choice(TOKENS) + data[end:]


def _repeat(random: Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    start, end = _span(random, data)
    return data[:start] + data[start:end] * random.choice((2, 3, 16, 1024)) + data[end:]


def _splice(random: Random, data: bytes, samples: Sequence[bytes]) -> bytes:
    other = random.choice(samples)
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


CHANGES: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flip,
    _set,
    _delete,
    _cut,
    _insert,
    _replace,
    _repeat,
    _splice,
)
