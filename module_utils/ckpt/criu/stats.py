# SPDX-License-Identifier: GPL-3.0-or-later
"""CRIU's statistics of a dump or a restore."""

from __future__ import annotations

import io

from . import image

# numbers of the fields in the messages dump_stats_entry and restore_stats_entry, of which stats_entry holds one
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

    Raises ImageError if the file is cut short or is not a stats image.
    """
    try:
        with open(path, "rb") as source:
            return decode(source.read())
    except FileNotFoundError:
        return {}


def decode(data: bytes) -> dict[str, int]:
    """The figures in the bytes of a stats image. Raises ImageError if they are cut short or something else."""
    figures: dict[str, int] = {}
    for entry in image.messages(io.BytesIO(data), image.STATS):
        message = image.Message(entry)
        for number, names in ENTRY_FIELDS.items():
            figures.update(_named(message.data(number), names))
    return figures


def _named(message: bytes | None, names: dict[int, str]) -> dict[str, int]:
    """Name → figure of those fields that the message has."""
    given = image.Message(message or b"")
    figures = {name: given.number_or(number, None) for number, name in names.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}
