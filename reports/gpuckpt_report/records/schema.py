# SPDX-License-Identifier: GPL-3.0-or-later
"""Records, lanes and manifests: the shape of everything that is measured (docs/records.md).

A model refuses unknown keys, so that a misspelt field cannot be lost in silence; validation names every error at once.
Times are seconds, sizes are bytes, unless a name says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA_VERSION = 1

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
LaneName = Annotated[str, Field(pattern=r"^[a-z0-9-]+$", max_length=64)]
SwitchName = Annotated[str, Field(pattern=r"^CRIU_[A-Z0-9_]+$")]
Seconds = Annotated[float, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]

Kind = Literal["cold", "restore", "checkpoint", "probe", "floor"]
MEASURED_KINDS = ("cold", "restore")
MOMENTS = ("T1", "T2", "T3", "T4", "T5")
SIZES = ("images_total", "gpu", "read", "mapped", "archive")
Metric = Literal["T4", "T1"]
Slimming = Literal["none", "sleep1", "sleep2", "kv-drop", "staged"]
Source = Literal["store", "disk", "tar", "tar.gz", "tar.zst"]
Build = Literal["stock", "patched", "distro", "current"]
Reason = Literal[
    "criu_missing",
    "criu_too_old",
    "criu_failed",
    "runtime_failed",
    "server_unhealthy",
    "server_died",
    "port_taken",
    "pid_taken",
    "server_running",
    "io_uring",
    "tcp_connection",
    "not_restorable",
    "store_full",
    "file_unusable",
    "images_truncated",
    "images_missing",
    "images_damaged",
    "canary_differs",
    "memory_damaged",
    "counter_lost",
    "pids_missing",
    "cuda_not_running",
    "gpu_bytes_missing",
    "wake_failed",
    "gpu_memory_short",
    "model_missing",
    "timeout",
    "node_taken",
    "bad_input",
    "internal",
]
SwitchValue = str | int | float | bool


class Model(BaseModel):
    """Base of all models: no unknown keys, no silent conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Timeline(Model):
    """Moments on the node's monotonic clock, in seconds since T0; null where a run did not get that far.

    T0 command started, T1 it returned, T2 every CUDA process RUNNING, T3 first HTTP 200 of /health,
    T4 first token of the canary, T5 its last token.
    """

    T0: Annotated[float, Field(ge=0, le=0)] = 0.0
    T1: Seconds | None = None
    T2: Seconds | None = None
    T3: Seconds | None = None
    T4: Seconds | None = None
    T5: Seconds | None = None

    @model_validator(mode="after")
    def _tokens_come_in_order(self) -> Self:
        if self.T4 is not None and self.T5 is not None and self.T5 < self.T4:
            raise ValueError(f"T5 ({self.T5}) lies before T4 ({self.T4}): the last token cannot precede the first")
        return self


class Span(Model):
    """A phase: seconds since T0."""

    start: Seconds
    end: Seconds

    @model_validator(mode="after")
    def _ends_after_start(self) -> Self:
        if self.end < self.start:
            raise ValueError(f"end ({self.end}) lies before start ({self.start})")
        return self


class ByteCounts(Model):
    """Sizes of one record in bytes: images by kind, GPU memory checkpointed, bytes read, mapped, and of the archive."""

    images: dict[str, Bytes] = {}
    images_total: Bytes | None = None
    gpu: Bytes | None = None
    read: Bytes | None = None
    mapped: Bytes | None = None
    archive: Bytes | None = None


class Canary(Model):
    """Tokens of the canary prompt, and whether they equal those before the checkpoint."""

    tokens: list[str] = []
    equal: bool | None = None


class Counter(Model):
    """The server's request counter before the checkpoint and after the restore."""

    before: float | None = None
    after: float | None = None


class Request(Model):
    """One completion request: time to its first token, whole duration, number of tokens; when it was sent, since T0."""

    requested_s: Seconds | None = None
    ttft_s: Seconds
    duration_s: Seconds
    tokens: Annotated[int, Field(ge=0)]


class Bill(Model):
    """What a record has to do with the bill of a start (docs/records.md): the start itself, or its server under load.

    A probe has the moment that was asked for and the one at which its first request was sent, in seconds after the start
    command had returned and the canary was answered.
    """

    started: Literal["cold", "restore"]
    asked_s: Seconds | None = None
    at_s: Seconds | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class BuildUsed(Model):
    """The CRIU build that did the work."""

    name: str
    digest: str | None = None
    version: str | None = None


class PageCache(Model):
    """Page cache state asked for, and the fraction of image pages resident before the restore (mincore)."""

    asked: Literal["warm", "dropped"] = "warm"
    resident_fraction: Annotated[float, Field(ge=0, le=1)] | None = None


class Quantity(Model):
    """A value with its unit."""

    value: float
    unit: Literal["s", "B", "B/s"]


class Conditions(Model):
    """What the node was doing meanwhile: shares of the time, 0 to 1; null where it does not tell.

    ``calibration_s`` is the time that a fixed loop took just before.
    """

    calibration_s: Seconds
    load_before: Annotated[float, Field(ge=0)]
    processors: Annotated[int, Field(ge=1)]
    steal_share: Annotated[float, Field(ge=0, le=1)] | None = None
    pressure: dict[str, Annotated[float, Field(ge=0, le=1)] | None] = {}
    frequency_mhz: float | None = None
    gpus: list[dict[str, int | str | None]] = []


class Record(Model):
    """One measurement: one call of one module on one node."""

    schema_version: Literal[1]
    run_id: Name
    host: Name
    seq: Annotated[int, Field(ge=0)]
    lane: LaneName
    kind: Kind
    iteration: Annotated[int, Field(ge=0)]
    warmup: bool
    status: Literal["ok", "failed"]
    reason: Reason | None = None
    message: str | None = None
    started_at: AwareDatetime
    clock: Literal["monotonic"] = "monotonic"
    t: Timeline = Timeline()
    phases: dict[str, Span] = {}
    bytes: ByteCounts = ByteCounts()
    gpu_mem_before: Bytes | None = None
    gpu_mem_after: Bytes | None = None
    stats: dict[str, Any] = {}
    canary: Canary = Canary()
    counter: Counter = Counter()
    requests: list[Request] = []
    bill: Bill | None = None
    build: BuildUsed | None = None
    switches: dict[SwitchName, SwitchValue] = {}
    slimming: Slimming = "none"
    source: Source | None = None
    page_cache: PageCache = PageCache()
    checks: dict[str, bool | None] = {}
    actions: list[list[str]] = []
    log_tail: list[str] = []
    floor: dict[str, Quantity] = {}
    conditions: Conditions | None = None
    fake: bool = False

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes a record one of its kind: a second one with the same key is the same measurement."""
        return self.run_id, self.host, self.seq, self.kind

    @model_validator(mode="after")
    def _status_agrees_with_the_proof(self) -> Self:
        errors = []
        if self.status == "failed" and self.reason is None:
            errors.append("a failed record needs a reason")
        if self.status == "ok":
            if self.reason is not None:
                errors.append(f"status is ok, yet reason is {self.reason}")
            missed = sorted(name for name, passed in self.checks.items() if passed is False)
            if missed:
                errors.append(f"status is ok, yet these checks of the truth gate are false: {', '.join(missed)}")
            if self.kind in MEASURED_KINDS and self.t.T1 is None and self.t.T4 is None:
                errors.append(f"an ok {self.kind} record needs T4 or at least T1")
        if self.kind == "probe" and self.status == "ok" and self.bill is not None:
            errors += _bill_errors(self.bill, self.requests)
        if self.kind in MEASURED_KINDS and self.bill is not None and not self.warmup:
            errors.append("a start of the bill is none of the schedule, and must be marked as warm-up")
        if bool(self.floor) != (self.kind == "floor" and self.status == "ok"):
            errors.append("ok records of kind floor, and only they, carry floor quantities")
        if errors:
            raise ValueError("; ".join(errors))
        return self


def _bill_errors(bill: Bill, requests: list[Request]) -> list[str]:
    """What an ok probe of the bill lacks for its figures."""
    errors = [f"a probe of the bill needs bill.{name}" for name in ("asked_s", "at_s") if getattr(bill, name) is None]
    if not requests or any(request.requested_s is None for request in requests):
        errors.append("a probe of the bill needs requests, each with requested_s")
    return errors


class LaneCheckpoint(Model):
    """What took the golden checkpoint of a lane."""

    build: Build = "stock"
    switches: dict[SwitchName, SwitchValue] = {}


class Lane(Model):
    """One way to bring the server up, as users write it in the inventory."""

    name: LaneName
    start: Literal["cold", "restore"]
    runtime: Literal["podman", "process"]
    build: Build = "current"
    switches: dict[SwitchName, SwitchValue] = {}
    slimming: Slimming = "none"
    source: Source = "store"
    flags: list[str] = []
    page_cache: Literal["warm", "dropped"] = "warm"
    resident_pool: bool = False
    prefetch: bool = False
    checkpoint: LaneCheckpoint = LaneCheckpoint()
    server: dict[str, Any] = {}
    iterations: Annotated[int, Field(ge=1)] | None = None
    baseline: bool = False
    description: str | None = None

    @model_validator(mode="after")
    def _page_cache_needs_a_disk(self) -> Self:
        if self.page_cache == "dropped" and self.source != "disk":
            raise ValueError(f"page_cache: dropped needs source: disk; images from {self.source} lie in memory")
        return self

    @model_validator(mode="after")
    def _resident_pool_is_the_patched_builds(self) -> Self:
        if self.resident_pool and (self.start, self.build) != ("restore", "patched"):
            raise ValueError(f"resident_pool needs a restore and build: patched, not {self.start} and {self.build}")
        return self

    @model_validator(mode="after")
    def _prefetch_needs_staged_weights(self) -> Self:
        if self.prefetch and self.slimming != "staged":
            raise ValueError(f"prefetch needs slimming: staged, not {self.slimming}")
        return self


class GitState(Model):
    """The commit that was measured; null where the project is no git checkout."""

    sha: str | None = None
    dirty: bool | None = None


class ScheduleEntry(Model):
    """One entry of the interleaved schedule."""

    seq: int
    lane: LaneName
    iteration: int
    warmup: bool


class BillPlan(Model):
    """How the bill of each lane is taken: rounds, seconds after each start, requests at a time and tokens of each."""

    rounds: Annotated[int, Field(ge=1)]
    moments_s: Annotated[list[Seconds], Field(min_length=1)]
    requests: Annotated[int, Field(ge=1)]
    tokens: Annotated[int, Field(ge=2)]


class RunManifest(Model):
    """Everything about a run that its records do not say themselves."""

    schema_version: Literal[1]
    run_id: Name
    started_at: AwareDatetime
    finished_at: AwareDatetime | None = None
    seed: int | str
    git: GitState = GitState()
    controller: dict[str, Any] = {}
    hosts: dict[Name, dict[str, Any]]
    hosts_asked: list[Name] = []
    lanes: Annotated[list[Lane], Field(min_length=1)]
    schedule: dict[Name, list[ScheduleEntry | tuple[LaneName, int]]] = {}
    iterations: Annotated[int, Field(ge=1)]
    bill: BillPlan | None = None
    server: dict[str, Any] = {}
    metric: Metric = "T4"
    description: str | None = None
    fake: bool = False

    @model_validator(mode="after")
    def _lanes_are_distinct(self) -> Self:
        errors = lane_set_errors(self.lanes)
        if errors:
            raise ValueError("; ".join(errors))
        return self

    @property
    def baseline(self) -> str:
        """Name of the lane that the others are compared with."""
        marked = [lane.name for lane in self.lanes if lane.baseline]
        restores = [lane.name for lane in self.lanes if lane.start == "restore"]
        return (marked + restores + [self.lanes[0].name])[0]

    def lane(self, name: str) -> Lane | None:
        """The lane of that name, or None where only records know it."""
        return next((lane for lane in self.lanes if lane.name == name), None)


def lane_set_errors(lanes: list[Lane]) -> list[str]:
    """Errors that no single lane shows: names used twice, several baselines."""
    names = [lane.name for lane in lanes]
    errors = [f"lane {name!r} is named twice" for name in sorted({name for name in names if names.count(name) > 1})]
    baselines = [lane.name for lane in lanes if lane.baseline]
    if len(baselines) > 1:
        errors.append(f"only one lane can be the baseline, not {', '.join(baselines)}")
    return errors


def explain(error: ValidationError) -> list[str]:
    """One line per error: where, what is wrong, and what was found."""
    lines = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        elif item["type"] not in ("missing", "value_error"):
            message += f", not {_short(item['input'])}"
        lines.append(f"{place}: {message}" if place else message)
    return lines


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
