# SPDX-License-Identifier: GPL-3.0-or-later
"""One measurement: what is recorded, and what it takes to count as a success."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from ..checkpoints.digests import Effort
from ..errors import CkptError
from ..server.client import Completion
from ..system import private
from ..system.files import write_json
from ..vocabulary import MOMENTS
from .conditions import Watch
from .results import (
    BillOfLoad,
    BillOfStart,
    Checks,
    Counter,
    CriuRun,
    Figure,
    ImageSizes,
    Load,
    PageCache,
    Phases,
    Result,
    Sizes,
    Span,
)

SCHEMA_VERSION = 1
MARKS = ("T0", *MOMENTS)
# in the order in which a failure is reported: what comes first explains what follows
GATES: dict[str, tuple[str, str]] = {
    "exit_zero": ("criu_failed", "the restore command failed"),
    "no_error_line": ("criu_failed", "CRIU exited 0, but its log shows a failed hook or plugin; see the log lines"),
    "pids_alive": (
        "pids_missing",
        "not every process of the checkpoint is alive after the restore; see the server's log",
    ),
    "cuda_running": (
        "cuda_not_running",
        "a CUDA process is not in the state RUNNING after the restore; see CRIU's log",
    ),
    "image_bytes": (
        "gpu_bytes_missing",
        "the images hold fewer bytes than the GPU memory that was in use; the GPU was not saved",
    ),
    "counter_survived": (
        "counter_lost",
        "the counter in the server's memory did not grow by one canary since the checkpoint: this is another process, "
        "or another client asked in between; see the record's counter",
    ),
    "canary_equal": (
        "canary_differs",
        "the canary's tokens differ from those before the checkpoint; the memory is damaged",
    ),
    "memory_equal": (
        "memory_damaged",
        "the digest that the server makes of its memory is not that from before the checkpoint; take the checkpoint again, "
        "and restore it with verify: pages to see whether the images are damaged",
    ),
}


class Record:
    """Builds one record of what the steps of a measurement return; `take` is where that comes together.

    Times are monotonic seconds until `as_dict` makes them seconds since T0.
    """

    def __init__(self, kind: str, identity: Mapping[str, Any]) -> None:
        self.kind = kind
        self.identity = dict(identity)
        self.started_at = datetime.now(UTC).isoformat(timespec="microseconds")
        self.marks: dict[str, float | None] = dict.fromkeys(MARKS)
        self.phases: dict[str, Span] = {}
        self.images = ImageSizes({}, 0)
        self.sizes = Sizes()
        self.criu = CriuRun({})
        self.digests: Effort | None = None
        self.gpu_mem_before: int | None = None
        self.gpu_mem_after: int | None = None
        self.canary_tokens: list[str] = []
        self.counter = Counter()
        self.requests: list[dict[str, Any]] = []
        # the start of the bill that this is or belongs to
        self.bill: BillOfStart | BillOfLoad | None = BillOfStart(kind) if self.identity.get("bill") else None
        self.build: dict[str, Any] | None = {"name": "current", "digest": None, "version": None}
        self.switches: dict[str, str] = {}
        self.slimming = "none"
        self.source: str | None = "store"
        self.page_cache = PageCache("warm", None)
        self.checks = Checks()
        self.log_tail: list[str] = []
        self.floor: dict[str, Figure] = {}
        self.failure: CkptError | None = None
        self.conditions: Watch | None = None

    @property
    def run_id(self) -> str | None:
        """The run that the measurement belongs to, None for one on its own."""
        return self.identity.get("run_id")

    @property
    def up_at(self) -> float | None:
        """When the command had returned and the canary was answered whole, on the monotonic clock in seconds."""
        returned, answered = self.marks["T1"], self.marks["T5"]
        return None if returned is None or answered is None else max(returned, answered)

    def mark(self, name: str, when: float) -> None:
        """Sets T0 … T5, on the monotonic clock in seconds."""
        self.marks[name] = when

    def take(self, *found: Result | Completion | Effort) -> None:
        """Puts in what steps have found; of what they leave open, what was known stays."""
        for one in found:
            match one:
                case Checks():
                    self.checks = replace(self.checks, **_told(one))
                case Sizes():
                    self.sizes = replace(self.sizes, **_told(one))
                case Counter():
                    self.counter = replace(self.counter, **_told(one))
                case Phases():
                    self.phases |= one.spans
                case CriuRun():
                    self.criu = one
                    self.phases |= one.phases
                case ImageSizes():
                    self.images = one
                case PageCache():
                    self.page_cache = one
                case Effort():
                    self.digests = one
                case Completion():
                    self.canary_tokens = one.tokens
                    self.requests.append(one.as_request())
                case Load():
                    self._take_load(one)

    def _take_load(self, load: Load) -> None:
        self.mark("T4", load.first_token)
        self.mark("T5", load.last_token)
        self.requests = list(load.requests)
        if isinstance(self.bill, BillOfLoad):
            self.bill = replace(self.bill, at_s=load.after_s)

    def judge(self) -> None:
        """Turns the first check that failed into the record's failure, unless a plainer cause is known."""
        for gate, (reason, message) in GATES.items():
            if getattr(self.checks, gate) is False and self.failure is None:
                self.failure = CkptError(reason, f"{message}.")

    def as_dict(self, actions: list[list[str]]) -> dict[str, Any]:
        """The record as JSON, times in seconds since T0."""
        start = self.marks["T0"]
        failure = self.failure
        return {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.identity.get("run_id") or "",
            "host": self.identity.get("host") or os.uname().nodename,
            "seq": self.identity.get("seq") or 0,
            "lane": self.identity.get("lane") or "",
            "kind": self.kind,
            "iteration": self.identity.get("iteration") or 0,
            "warmup": bool(self.identity.get("warmup")),
            "status": "failed" if failure else "ok",
            "reason": failure.reason if failure else None,
            "message": failure.message if failure else None,
            "started_at": self.started_at,
            "clock": "monotonic",
            "t": {name: _offset(when, start) for name, when in self.marks.items()} | {"T0": 0.0},
            "phases": self._phases(start),
            "bytes": {
                "images": dict(self.images.by_kind),
                "images_total": self.images.total,
                "gpu": self.sizes.gpu,
                "read": self.criu.read_bytes,
                "mapped": self.criu.mapped_bytes,
                "archive": self.sizes.archive,
            },
            "gpu_mem_before": self.gpu_mem_before,
            "gpu_mem_after": self.gpu_mem_after,
            "stats": self._stats(),
            "canary": {"tokens": self.canary_tokens, "equal": self.checks.canary_equal},
            "counter": asdict(self.counter),
            "requests": self.requests,
            "bill": None if self.bill is None else self.bill.as_record(),
            "build": self.build,
            "switches": self.switches,
            "slimming": self.slimming,
            "source": self.source,
            "page_cache": asdict(self.page_cache),
            "checks": asdict(self.checks),
            "actions": actions,
            "log_tail": self.log_tail,
            "floor": {} if failure else {name: asdict(figure) for name, figure in self.floor.items()},
            "conditions": None if self.conditions is None else self.conditions.as_dict(),
        }

    def _stats(self) -> dict[str, Any]:
        digests = {} if self.digests is None else {"digests": self.digests.as_record()}
        return {"criu": dict(self.criu.stats), **self.criu.runtime_stats, **digests}

    def _phases(self, start: float | None) -> dict[str, dict[str, float]]:
        if start is None:
            return {}
        offsets = {
            name: (max(0.0, begin - start), max(0.0, end - start))
            for name, (begin, end) in sorted(self.phases.items(), key=lambda item: item[1])
        }
        phases = {name: {"start": _round(begin), "end": _round(end)} for name, (begin, end) in offsets.items()}
        last = max((when for when in (self.marks["T4"], self.marks["T1"]) if when is not None), default=None)
        if last is not None:
            phases["unattributed"] = {"start": 0.0, "end": _round(uncovered(list(offsets.values()), last - start))}
        return phases


def outcome(record: Mapping[str, Any]) -> str:
    """What came of a measurement, in one line; times in seconds."""
    kind = "bill" if record["bill"] else "warm-up" if record["warmup"] else "iteration"
    what = f"{record['lane']}, {kind} {record['iteration']}"
    if record["status"] != "ok":
        return f"{what}: FAILED ({record['reason']}): {record['message']}"
    if record["kind"] == "probe":
        return f"{what}: {_load(record['requests'])}, {record['bill']['at_s']:.1f} s after it was up"
    return f"{what}: first token after {record['t']['T4']:.3f} s"


def _load(requests: Sequence[Mapping[str, Any]]) -> str:
    """Throughput of requests that were under way together, and the median time from token to token."""
    # not at the top: it is a tenth of what a restore imports
    from statistics import median

    wall_s = max(one["requested_s"] + one["duration_s"] for one in requests) - min(
        one["requested_s"] for one in requests
    )
    gaps = [(one["duration_s"] - one["ttft_s"]) / (one["tokens"] - 1) for one in requests if one["tokens"] > 1]
    rate = f"{sum(one['tokens'] for one in requests) / wall_s:.0f} tokens/s"
    return f"{rate}, {median(gaps) * 1000:.1f} ms a token" if gaps else rate


def uncovered(intervals: list[tuple[float, float]], end: float) -> float:
    """Seconds between 0 and `end` that no interval covers."""
    gap = reached = 0.0
    for begin, stop in sorted(intervals):
        gap += max(0.0, min(begin, end) - reached)
        reached = max(reached, min(stop, end))
    return gap + max(0.0, end - reached)


def write_record(path: str | None, record: Mapping[str, Any]) -> None:
    """Keeps the record on the node, in a folder that only root may read, before the connection can be lost."""
    if path:
        private.make_folders(os.path.dirname(path))
        write_json(path, record)


def _told(found: Checks | Sizes | Counter) -> dict[str, Any]:
    return {name: value for name, value in asdict(found).items() if value is not None}


def _offset(when: float | None, start: float | None) -> float | None:
    return None if when is None or start is None else _round(when - start)


def _round(seconds: float) -> float:
    return round(seconds, 6)
