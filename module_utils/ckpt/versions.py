# SPDX-License-Identifier: GPL-3.0-or-later
"""Versions in what programs print, and how they compare."""

from __future__ import annotations

import re


def version_in(text: str) -> str | None:
    """The first thing in a text that looks like a version of two or more numbers: `4.2.1`; None if there is none."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return match[0] if match else None


def version_tuple(version: str | None) -> tuple[int, ...]:
    """A version's numbers, for comparison: `4.1-dev12` as (4, 1), since what follows a hyphen came before 4.1; () for None."""
    return tuple(int(number) for number in re.findall(r"[0-9]{1,9}", (version or "").partition("-")[0]))
