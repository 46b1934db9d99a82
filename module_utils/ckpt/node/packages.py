# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node's package manager has. dpkg and apt are asked themselves: Ansible's module takes ten times as long."""

from __future__ import annotations

from collections.abc import Sequence

from ..system.commands import NOT_FOUND
from .inspection import Node

# apt's word for a package that it knows by name alone, as one that others only mention
NO_CANDIDATE = "(none)"


def installed(node: Node, names: Sequence[str]) -> dict[str, str] | None:
    """The versions of those packages that are installed, by name; None on a node without dpkg."""
    if not names:
        return {}
    # a name that is not known makes it fail, and the others are told all the same
    done = node.run(
        "dpkg-query", "--show", "--showformat", r"${db:Status-Status}\t${Package}\t${Version}\n", "--", *names
    )
    return None if done.rc == NOT_FOUND else versions(done.stdout)


def versions(text: str) -> dict[str, str]:
    """The versions of installed packages in what dpkg prints: state, name and version, with tabs between them."""
    rows = [line.split("\t") for line in text.splitlines()]
    return {row[1]: row[2] for row in rows if len(row) == 3 and row[0] == "installed"}


def offered(node: Node, names: Sequence[str]) -> list[str]:
    """Those packages that apt could install; none where there is no apt."""
    done = node.run("apt-cache", "policy", "--", *names) if names else None
    return candidates(done.stdout) if done and done.rc == 0 else []


def candidates(text: str) -> list[str]:
    """The packages that have a candidate in what `apt-cache policy` prints."""
    found = []
    name = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            name = line.rstrip(":")
        elif line.startswith("  Candidate: ") and line.removeprefix("  Candidate: ") != NO_CANDIDATE:
            found.append(name)
    return found
