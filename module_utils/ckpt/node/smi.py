# SPDX-License-Identifier: GPL-3.0-or-later
"""What nvidia-smi prints, read as rows of cells."""

from __future__ import annotations

import re

PROGRAM = "nvidia-smi"
FORMAT = "--format=csv,noheader,nounits"
# the unit of memory in this format
MIB = 1024 * 1024


def query(what: str) -> list[str]:
    """The command that prints rows for a --query option, such as `--query-gpu=index,uuid`."""
    return [PROGRAM, what, FORMAT]


def parse_rows(text: str) -> list[list[str]]:
    """The cells of each line that `query` prints."""
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]


def whole_number(text: str, unit: int = 1) -> int | None:
    """A number times a unit; None for [N/A] or [Not Supported], where a GPU does not tell."""
    return int(text) * unit if re.fullmatch(r"[0-9]{1,15}", text) else None
