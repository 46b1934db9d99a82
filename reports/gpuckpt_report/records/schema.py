# SPDX-License-Identifier: GPL-3.0-or-later
"""Records, lanes and manifests: the shape of everything that is measured (docs/records.md).

A model refuses unknown keys, so that a misspelt field cannot be lost in silence; validation names every error at once.
Times are seconds, sizes are bytes, unless a name says otherwise.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from gpuckpt_report.records.vocabulary import (
    LANE_NAME,
    LANE_NAME_LENGTH,
    MEASURED_KINDS,
    SWITCH_NAME,
    Build,
    Kind,
    Metric,
    PageCacheState,
    Reason,
    Runtime,
    Slimming,
    Source,
    Start,
    lane_problems,
    set_problems,
)

SCHEMA_VERSION = 1
SIZES = ("images_total", "gpu", "read", "mapped", "archive")
# what is said of a value instead of pydantic's own words; the braces are filled from the error's context
WORDS = {
    "missing": "is missing",
    "literal_error": "must be {expected}",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "greater_than_equal": "must be at least {ge}",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "list_type": "must be a list",
    "dict_type": "must be a dictionary",
    "model_type": "must be a dictionary",
}


def _named(pattern: str, words: str) -> AfterValidator:
    """A check that a text is as the pattern has it, which says so in words."""
    expression = re.compile(pattern)

    def check(name: str) -> str:
        if not expression.fullmatch(name):
            raise ValueError(f"{words}, not {_short(name)}")
        return name

    return AfterValidator(check)


def _plain(value: object) -> object:
    if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"must be text, a number, true or false, not {_short(value)}")
    return value


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
LaneName = Annotated[
    str, Field(max_length=LANE_NAME_LENGTH), _named(LANE_NAME, "must be lower-case words joined by '-'")
]
SwitchName = Annotated[str, _named(SWITCH_NAME, "must be the name of a switch, CRIU_*")]
# one message for a value of another type, not one for each type
SwitchValue = Annotated[str | int | float | bool, BeforeValidator(_plain)]
Seconds = Annotated[float, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]


class Model(BaseModel):
    """Base of all models: no unknown keys, no silent conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Timeline(Model):
    """Moments on the node's monotonic clock, in seconds since T0; null where a run did not get that far.

    T0: the command started. T1: it returned. T2: every CUDA process is RUNNING. T3: first HTTP 200 of /health.
    T4: first token of the canary. T5: its last token.
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

    A probe has the moment that was asked for and the one at which its first request was sent. Both are in seconds since
    the start command had returned and the canary was answered.
    """

    started: Start
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

    asked: PageCacheState = "warm"
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
            errors.append("a start of the bill is not of the schedule, and must be marked as warm-up")
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
    start: Start
    runtime: Runtime
    build: Build = "current"
    switches: dict[SwitchName, SwitchValue] = {}
    slimming: Slimming = "none"
    source: Source = "store"
    flags: list[Annotated[str, Field(min_length=1)]] = []
    page_cache: PageCacheState = "warm"
    resident_pool: bool = False
    prefetch: bool = False
    checkpoint: LaneCheckpoint = LaneCheckpoint()
    server: dict[str, Any] = {}
    iterations: Annotated[int, Field(ge=1)] | None = None
    baseline: bool = False
    description: str | None = ""

    @property
    def other_server(self) -> str | None:
        """Model of the server that the lane has in place of the run's; None if it is the run's own, however changed."""
        return next((str(self.server[key]) for key in ("model", "kind") if key in self.server), None)

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if problems := lane_problems(self.model_dump(exclude_defaults=True)):
            raise ValueError("; ".join(problems))
        return self


def lane_errors(lane: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a lane as a user wrote it: its keys, their values, and how they go together."""
    errors = []
    try:
        Lane.model_validate(lane)
    except ValidationError as error:
        # An error of value without a place comes from the rules. They are asked below, of lanes with other errors, too.
        found = _explained(error, Lane)
        errors = [line for item, line in found if item["loc"] or item["type"] != "value_error"]
    return errors + lane_problems({key: value for key, value in lane.items() if key in Lane.model_fields})


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
    def baselines(self) -> frozenset[str]:
        """Names of the lanes that others are compared with, one for each server: the marked one, else its first restore."""
        order = sorted(self.lanes, key=lambda lane: (not lane.baseline, lane.start != "restore"))
        chosen = {lane.other_server: lane.name for lane in reversed(order)}
        return frozenset(chosen.values())

    def lane(self, name: str) -> Lane | None:
        """The lane of that name, or None where only records know it."""
        return next((lane for lane in self.lanes if lane.name == name), None)


def lane_set_errors(lanes: list[Lane]) -> list[str]:
    """Errors that no single lane shows: names used twice, several baselines."""
    return set_problems((lane.name, lane.baseline) for lane in lanes)


Place = tuple[int | str, ...]


def explain(error: ValidationError) -> list[str]:
    """One line per error: where, what is wrong, and what was found."""
    return [line for _, line in _explained(error)]


def _explained(error: ValidationError, model: type[Model] | None = None) -> Iterator[tuple[ErrorDetails, str]]:
    """Each error and its line. With the model that was validated, an unknown key is told with the ones there are."""
    for item in error.errors(include_url=False):
        # pydantic marks a key that is wrong itself
        place = tuple(part for part in item["loc"] if part != "[key]")
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key" + _meant(place, model)
        elif item["type"] != "value_error":
            words = WORDS.get(item["type"])
            message = words.format(**item.get("ctx", {})) if words else message
            message += "" if item["type"] == "missing" else f", not {_short(item['input'])}"
        joint = " " if message.startswith(("must ", "is ")) else ": "
        yield item, joint.join([".".join(map(str, place)), message] if place else [message])


def _meant(place: Place, model: type[Model] | None) -> str:
    """What an unknown key may stand for."""
    known = _keys_at(place[:-1], model)
    close = difflib.get_close_matches(str(place[-1])[:LANE_NAME_LENGTH], known, n=1)
    if close:
        return f", did you mean {close[0]!r}?"
    return f" (known: {', '.join(known)})" if known else ""


def _keys_at(place: Place, model: type[Model] | None) -> list[str]:
    """The keys of a model within a model; none where there is no other."""
    for part in place:
        field = model.model_fields.get(str(part)) if model else None
        inner = field.annotation if field else None
        model = inner if isinstance(inner, type) and issubclass(inner, Model) else None
    return list(model.model_fields) if model else []


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
