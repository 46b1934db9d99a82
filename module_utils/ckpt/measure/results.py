# SPDX-License-Identifier: GPL-3.0-or-later
"""What the steps of a measurement find out. Each returns one of these, and Record.take puts it into the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# begin and end on the monotonic clock, in seconds
Span = tuple[float, float]


@dataclass(frozen=True)
class Checks:
    """Checks of the truth gate; None are those that do not apply, or were not made."""

    exit_zero: bool | None = None
    no_error_line: bool | None = None
    pids_alive: bool | None = None
    cuda_running: bool | None = None
    image_bytes: bool | None = None
    counter_survived: bool | None = None
    canary_equal: bool | None = None
    memory_equal: bool | None = None


@dataclass(frozen=True)
class Phases:
    """When what happened, by name."""

    spans: Mapping[str, Span]


@dataclass(frozen=True)
class CriuRun:
    """What a checkpoint or restore left behind: figures of CRIU and of the runtime's own command, and phases of both.

    :param read_bytes: memory that was read from the images, None where CRIU does not tell
    :param mapped_bytes: memory that was mapped from the images, None where CRIU does not tell
    """

    stats: Mapping[str, Any]
    runtime_stats: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    phases: Mapping[str, Span] = field(default_factory=dict)
    read_bytes: int | None = None
    mapped_bytes: int | None = None


@dataclass(frozen=True)
class ImageSizes:
    """Bytes of a checkpoint's images, by kind and in all."""

    by_kind: Mapping[str, int]
    total: int


@dataclass(frozen=True)
class Sizes:
    """Bytes: what the server's processes have on GPUs, and the checkpoint's archive. None where there are none."""

    gpu: int | None = None
    archive: int | None = None


@dataclass(frozen=True)
class PageCache:
    """State of the images in the page cache: what was asked for, and the fraction that was found there."""

    asked: str | None
    resident_fraction: float | None


@dataclass(frozen=True)
class Counter:
    """The server's request counter before and after the operation; None where it was not told."""

    before: int | None = None
    after: int | None = None


@dataclass(frozen=True)
class Load:
    """Requests that were under way together.

    :param requests: as a record has them
    :param first_token: the first of all, on the monotonic clock in seconds
    :param last_token: the last of all, likewise
    :param after_s: seconds from when the server was up until the first request, None without a bill
    """

    requests: Sequence[dict[str, Any]]
    first_token: float
    last_token: float
    after_s: float | None


@dataclass(frozen=True)
class BillOfStart:
    """A start whose server is measured under load later."""

    started: str

    def as_record(self) -> dict[str, Any]:
        """For a record."""
        return {"started": self.started}


@dataclass(frozen=True)
class BillOfLoad:
    """A load after a start: `asked_s` and `at_s` are seconds since the server was up, as planned and as it came."""

    started: str
    asked_s: float
    concurrency: int
    max_tokens: int
    at_s: float | None = None

    def as_record(self) -> dict[str, Any]:
        """For a record."""
        return {
            "started": self.started,
            "asked_s": self.asked_s,
            "at_s": self.at_s,
            "concurrency": self.concurrency,
            "max_tokens": self.max_tokens,
        }


@dataclass(frozen=True)
class Figure:
    """What a node cannot beat: one value with its unit."""

    value: float
    unit: str


Result = Checks | Phases | CriuRun | ImageSizes | Sizes | PageCache | Counter | Load
