# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures as people read them."""

from __future__ import annotations


def seconds(value: float | None) -> str:
    """A duration for a column headed "s": three significant digits, never fewer decimals than they need."""
    if value is None:
        return "–"
    decimals = 3 if value < 0.9995 else 2 if value < 9.995 else 1
    return f"{value:.{decimals}f}"


def human_seconds(value: float) -> str:
    """A duration with its unit: ``170 ms``, ``1.23 s``, ``2 min 5 s``.

    :param value: seconds
    """
    if value < 0:
        return f"-{human_seconds(-value)}"
    if value < 0.0995:
        return f"{value * 1000:.1f} ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{seconds(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"


def human_bytes(value: float) -> str:
    """A size with its binary unit: ``512 B``, ``1.5 KiB``, ``3.09 GiB``.

    :param value: bytes
    """
    if value < 0:
        return f"-{human_bytes(-value)}"
    size, unit = float(value), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1023.5 or unit == "TiB":
            break
        size /= 1024
    if unit == "B":
        return f"{size:.0f} B"
    decimals = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{decimals}f} {unit}"


def times(value: float) -> str:
    """A ratio: ``4.62×``."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}×"


def quantity(value: float, unit: str) -> str:
    """A value of a floor record with its unit.

    :param unit: ``s``, ``B`` or ``B/s``
    """
    if unit == "s":
        return human_seconds(value)
    return human_bytes(value) + unit.removeprefix("B")
