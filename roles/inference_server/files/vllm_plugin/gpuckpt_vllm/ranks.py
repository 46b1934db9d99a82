# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ranks of a server tell one another, and how an error of one becomes an error of all.

A rank that gave up on its own would leave the others waiting for it. So each step of a release or a rebuild ends with a
vote: every rank says what went wrong, and all raise if anything did.
"""

from __future__ import annotations

from typing import Protocol

MOST_BYTES = 512  # what one rank can say at a time


class RankError(RuntimeError):
    """A step that one rank or several could not do; the message names them."""


class Ranks(Protocol):
    """The ranks that take part, as one of them sees them."""

    rank: int
    size: int

    def gather(self, word: bytes) -> list[bytes]:
        """What every rank says, in their order; at most MOST_BYTES each.

        :raises RankError: when a rank says nothing within the time limit
        """
        ...


class Alone:
    """The ranks of a server that has one: nobody is asked, and nothing is sent."""

    rank = 0
    size = 1

    def gather(self, word: bytes) -> list[bytes]:
        """Returns what was said."""
        return [word]


def agree(ranks: Ranks, problem: BaseException | None, what: str) -> None:
    """Ends a step on all ranks.

    :param problem: what went wrong on this one, if anything
    :param what: the step, as a message begins: "the release of NCCL"
    :raises RankError: on every rank if any had a problem. A rank that is alone raises its own.
    """
    if ranks.size == 1:
        if problem is not None:
            raise problem
        return
    said = "" if problem is None else f"{type(problem).__name__}: {problem}"
    words = [word.decode(errors="replace") for word in ranks.gather(_shortened(said))]
    failed = [f"rank {rank}: {word}" for rank, word in enumerate(words) if word]
    if failed:
        raise RankError(f"{what} failed on {len(failed)} of {ranks.size} ranks; {'; '.join(failed)}") from problem


def _shortened(text: str) -> bytes:
    raw = text.encode()
    return raw if len(raw) <= MOST_BYTES else raw[: MOST_BYTES - 3] + b"..."
