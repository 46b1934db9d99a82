# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter of the role checkpoint_bench: which commit is measured."""

from __future__ import annotations

from typing import Any

DIRTY = "-dirty"


def checkpoint_bench_git(described: str) -> dict[str, Any]:
    """Returns ``sha`` of the commit, and ``dirty``, whether files differ from it; both None where there is no checkout.

    :param described: what ``git describe --always --dirty --abbrev=40`` printed
    """
    name = described.strip()
    if not name:
        return {"sha": None, "dirty": None}
    return {"sha": name.removesuffix(DIRTY), "dirty": name.endswith(DIRTY)}


class FilterModule:
    """Register the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filter by name."""
        return {"checkpoint_bench_git": checkpoint_bench_git}
