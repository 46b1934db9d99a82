# SPDX-License-Identifier: GPL-3.0-or-later
"""Which publications are removed: the oldest beyond those to be kept, never one that a node uses or that is being published."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from .publication import Version

# a publication that nobody has finished after this time is given up
ABANDONED = timedelta(days=7)


def surplus(found: Sequence[Version], keep: int, used: Collection[str]) -> list[Version]:
    """Finished publications that may go, the oldest first.

    :param found: all publications, the newest first
    :param keep: how many of the newest stay; 0 keeps all
    :param used: versions that nodes have
    """
    finished = [one for one in found if one.complete]
    return [one for one in reversed(finished[keep:]) if one.version not in used] if keep else []


def abandoned(
    found: Sequence[Version], me: str, mine: str | None, begun: Mapping[str, datetime], now: datetime
) -> list[Version]:
    """Publications that were begun and will not be finished.

    :param me: this node, which publishes one at a time
    :param mine: the version that this node is publishing
    :param begun: when each publication of another node was begun, as far as it is known
    """
    unfinished = [one for one in found if not one.complete and one.version != mine]
    return [
        one for one in unfinished if one.node == me or (one.version in begun and now - begun[one.version] > ABANDONED)
    ]


def moment(text: object) -> datetime | None:
    """A moment from a document of another node; None if it cannot be read."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
