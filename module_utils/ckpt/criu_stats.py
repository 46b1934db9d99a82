# SPDX-License-Identifier: GPL-3.0-or-later
"""CRIU's stats-dump and stats-restore images, decoded by hand: two magic numbers, a size, one protobuf message."""

from __future__ import annotations

import struct

SERVICE_MAGIC = 0x55105940
STATS_MAGIC = 0x57093306
VARINT = 0
LENGTH_DELIMITED = 2

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
    """(number, value) of each field of a protobuf message that holds only varints and length-delimited fields."""
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
    """The variable-length integer at `position`, and the position after it."""
    value = shift = 0
    while position < len(message):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a protobuf integer is cut short")
