# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role copies: where the programs that copy come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

OWN = "/usr/bin"


def copies_programs(wanted: Sequence[str], found: Iterable[dict[str, Any]], tree: str, links: str) -> dict[str, Any]:
    """Returns what is to be done for the programs that a node is to have.

    - ``to_link``: those that a bundle has brought, and the node does not have itself
    - ``to_install``: those that no bundle has brought
    - ``lacking``: those that nobody finds

    :param wanted: names of programs
    :param found: what module stat told of the paths of ``copies_paths``
    :param tree: where a bundle puts them, in its folder ``bin``
    :param links: where links to these are
    """
    there = {one["stat"]["path"] for one in found if one["stat"]["exists"]}
    bundled = [name for name in wanted if f"{tree}/bin/{name}" in there]
    return {
        "to_link": [name for name in bundled if f"{OWN}/{name}" not in there],
        "to_install": [name for name in wanted if name not in bundled],
        "lacking": [name for name in wanted if not there & {f"{OWN}/{name}", f"{links}/{name}"}],
    }


def copies_paths(wanted: Sequence[str], tree: str, links: str) -> list[str]:
    """Returns where these programs may be."""
    return [f"{folder}/{name}" for name in wanted for folder in (f"{tree}/bin", OWN, links)]


class FilterModule:
    """Register the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filters by name."""
        return {"copies_programs": copies_programs, "copies_paths": copies_paths}
