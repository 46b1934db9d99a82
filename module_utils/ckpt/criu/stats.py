# SPDX-License-Identifier: GPL-3.0-or-later
"""CRIU's images read by hand, as far as we need it: two magic numbers, then protobuf messages, each with its size."""

from __future__ import annotations

import struct
from collections.abc import Iterator

SERVICE_MAGIC = 0x55105940
STATS_MAGIC = 0x57093306
VARINT = 0
LENGTH_DELIMITED = 2
# what a 64-bit number takes at most
VARINT_BYTES = 10
HEADER_BYTES = 8
SIZE_BYTES = 4
# CRIU's own messages are of kilobytes; its largest hold a socket's queue, or the data of a pipe
MESSAGE_BYTES = 64 << 20

DUMP_FIELDS = {
    1: "freezing_time_us",
    2: "frozen_time_us",
    3: "memdump_time_us",
    4: "memwrite_time_us",
    5: "pages_scanned",
    6: "pages_skipped_parent",
    7: "pages_written",
    8: "irmap_resolve_us",
    9: "pages_lazy",
    10: "page_pipes",
    11: "page_pipe_bufs",
    12: "shpages_scanned",
    13: "shpages_skipped_parent",
    14: "shpages_written",
}
RESTORE_FIELDS = {
    1: "pages_compared",
    2: "pages_skipped_cow",
    3: "forking_time_us",
    4: "restore_time_us",
    5: "pages_restored",
}
ENTRY_FIELDS = {1: DUMP_FIELDS, 2: RESTORE_FIELDS}


def read_stats(path: str) -> dict[str, int]:
    """The figures of a stats image (times in microseconds, counts in pages); empty if there is none.

    Raises ValueError if the file is not a stats image.
    """
    try:
        with open(path, "rb") as source:
            return decode(source.read())
    except FileNotFoundError:
        return {}


def decode(image: bytes) -> dict[str, int]:
    """Decode the bytes of a stats image. Raises ValueError if they are none."""
    if len(image) < 12 or struct.unpack_from("<II", image) != (SERVICE_MAGIC, STATS_MAGIC):
        raise ValueError("not a CRIU stats image")
    size = struct.unpack_from("<I", image, 8)[0]
    entry = image[12 : 12 + size]
    if len(entry) != size:
        raise ValueError("the CRIU stats image is cut short")
    figures: dict[str, int] = {}
    for number, value in fields(entry):
        if number in ENTRY_FIELDS and isinstance(value, bytes):
            names = ENTRY_FIELDS[number]
            figures.update({names[key]: item for key, item in fields(value) if key in names and isinstance(item, int)})
    return figures


def fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """(number, value) of each field of a protobuf message that holds only varints and length-delimited fields.

    Raises ValueError if it is none.
    """
    found: list[tuple[int, int | bytes]] = []
    position = 0
    while position < len(message):
        key, position = varint(message, position)
        value, position = varint(message, position)
        if key & 7 == VARINT:
            found.append((key >> 3, value))
        elif key & 7 == LENGTH_DELIMITED:
            if position + value > len(message):
                raise ValueError("a protobuf field is cut short")
            found.append((key >> 3, message[position : position + value]))
            position += value
        else:
            raise ValueError(f"protobuf wire type {key & 7} is not expected here")
    return found


def varint(message: bytes, position: int) -> tuple[int, int]:
    """The variable-length integer at `position`, and the position after it. Raises ValueError if it has no end."""
    value = 0
    for shift, byte in enumerate(message[position : position + VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, position + shift + 1
    raise ValueError("a protobuf integer is cut short or too long")


def entries(path: str) -> Iterator[bytes]:
    """The protobuf messages of a CRIU image: after the header, each with its size before it; none if there is no image.

    Raises ValueError if the image is cut short, or says that it holds a message of a size that none has.
    """
    try:
        source = open(path, "rb")  # noqa: SIM115  (closed below)
    except FileNotFoundError:
        return
    with source:
        source.read(HEADER_BYTES)
        while size := source.read(SIZE_BYTES):
            length = int.from_bytes(size, "little")
            if length > MESSAGE_BYTES:
                raise ValueError(f"says that a message of it has {length} bytes")
            message = source.read(length)
            if len(size) < SIZE_BYTES or len(message) < length:
                raise ValueError("is cut short")
            yield message
