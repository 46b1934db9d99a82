# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a running play: fed with ansible-runner's events, read by the console. It prints nothing itself."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Event = dict[str, Any]

# Tasks with these actions only steer the play: naming them would bury those that do something.
STEERING_ACTIONS = (
    "include_tasks",
    "import_tasks",
    "include_role",
    "import_role",
    "set_fact",
    "assert",
    "debug",
    "meta",
)
LOG_LINES_SHOWN = 5
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
SCHEDULE_KEYS = {"seq", "lane", "iteration", "warmup"}
BILL_KEYS = {*SCHEDULE_KEYS, "moments"}


@dataclass
class LaneProgress:
    """Measured iterations of one lane on one host; ``before`` of them in earlier calls of the run."""

    total: int = 0
    before: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Number of iterations that are over, failed ones included."""
        return self.before + self.failed + len(self.seconds)

    @property
    def median(self) -> float | None:
        """Median seconds of the ok iterations so far."""
        return median(self.seconds) if self.seconds else None


@dataclass
class HostProgress:
    """Lanes of one host, and how much of its schedule is over (warm-up included).

    ``bills`` are the entries of the bill that are left, each with the seconds that its server runs at least.
    """

    lanes: dict[str, LaneProgress] = field(default_factory=dict)
    total: int = 0
    done: int = 0
    moments: list[float] = field(default_factory=list)
    bills: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def left_s(self) -> float | None:
        """Seconds until schedule and bill are over, as entries have taken so far; None before two of them.

        An entry of the bill is one of the schedule, and then the time until the last moment.
        """
        if len(self.moments) < 2:
            return None
        entry_s = (self.moments[-1] - self.moments[0]) / (len(self.moments) - 1)
        return entry_s * (self.total - self.done + len(self.bills)) + sum(self.bills.values())


class Progress:
    """State of a play. ``feed`` takes an event and gives the lines that a log should show for it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.play = ""
        self.task = ""
        self.hosts: dict[str, HostProgress] = {}
        self.told: set[str] = set()
        self._handlers = {
            "playbook_on_play_start": self._on_play,
            "playbook_on_task_start": self._on_task,
            "playbook_on_handler_task_start": self._on_task,
            "playbook_on_stats": self._on_stats,
            "runner_on_ok": self._on_ok,
            "runner_item_on_ok": self._on_item,
            "runner_item_on_failed": self._on_item,
            "runner_on_failed": self._on_failed,
            "runner_on_unreachable": self._on_failed,
            "error": self._on_text,
            "warning": self._on_text,
            "verbose": self._on_plain,
        }

    @property
    def measuring(self) -> bool:
        """Whether a schedule is under way."""
        return any(host.moments and (host.done < host.total or host.bills) for host in self.hosts.values())

    def feed(self, event: Event) -> list[str]:
        """Takes one event of ansible-runner and returns the lines worth logging."""
        handler = self._handlers.get(event.get("event", ""))
        return [] if handler is None else list(handler(event, event.get("event_data") or {}))

    def _on_play(self, _: Event, data: Event) -> Iterator[str]:
        self.play, self.task = data.get("name") or data.get("play", ""), ""
        yield f"PLAY {self.play}"

    def _on_task(self, _: Event, data: Event) -> Iterator[str]:
        self.task = data.get("name") or data.get("task", "")
        steering = str(data.get("task_action", "")).rpartition(".")[2] in STEERING_ACTIONS
        if not steering and not self.measuring:
            yield f"  {self.task}"

    def _on_ok(self, _: Event, data: Event) -> Iterator[str]:
        result, host = data.get("res") or {}, data.get("host", "")
        schedules = [value for value in (result.get("ansible_facts") or {}).values() if _is_schedule(value)]
        if schedules:
            # A run that is continued sets two: the whole one, and what is left of it.
            self._take_schedule(host, max(schedules, key=len), min(schedules, key=len))
        for bill in (value for value in (result.get("ansible_facts") or {}).values() if _is_bill(value)):
            self._take_bill(host, bill)
        measurement = _is_measurement(result.get("record"))
        if _is_billed(result.get("record")) and host in self.hosts:
            yield from self._take_billed(host, result)
        elif measurement and self._take_record(host, result["record"]):
            progress = self.hosts[host]
            yield f"[{host} {progress.done}/{progress.total}] {result.get('outcome', result['record']['lane'])}"
        elif str(data.get("task_action", "")).endswith("debug") and "msg" in result:
            yield from _debug_lines(result["msg"])
        elif result.get("changed") and not measurement and not self.measuring:
            yield f"    changed: {host}"

    def _on_item(self, _: Event, data: Event) -> Iterator[str]:
        """One turn of a loop: the probes of the bill are some."""
        result, host = data.get("res") or {}, data.get("host", "")
        if _is_billed(result.get("record")) and host in self.hosts:
            yield from self._take_billed(host, result)

    def _on_failed(self, _: Event, data: Event) -> Iterator[str]:
        if data.get("ignore_errors"):
            return
        result = data.get("res") or {}
        yield f"  FAILED {data.get('host', '')}, {self.task}: {result.get('msg', 'no message')}"
        # modules of this project choose the lines that matter themselves
        # a module that could not even start says why on another one
        errors = result.get("stderr") or result.get("module_stderr") or ""
        lines = result.get("log_lines") or str(errors).splitlines()
        yield from (f"    {line}" for line in lines[-LOG_LINES_SHOWN:])

    def _on_stats(self, _: Event, data: Event) -> Iterator[str]:
        hosts = sorted({host for kind in ("ok", "changed", "failures", "dark") for host in data.get(kind) or {}})
        for host in hosts:
            counts = [f"{kind} {(data.get(key) or {}).get(host, 0)}" for kind, key in _RECAP]
            yield f"{host}: {', '.join(counts)}"

    def _on_text(self, event: Event, _: Event) -> Iterator[str]:
        """Ansible's own errors and warnings, such as a playbook that cannot be read."""
        yield from self._tell(
            line for line in COLOURS.sub("", str(event.get("stdout", ""))).splitlines() if line.strip()
        )

    def _on_plain(self, event: Event, _: Event) -> Iterator[str]:
        """What Ansible prints before any play, and ansible-runner takes for chatter: why there is no inventory, or no host."""
        lines = (COLOURS.sub("", line) for line in str(event.get("stdout", "")).splitlines())
        yield from self._tell(line for line in lines if not self.play and line.startswith(("[ERROR]", "[WARNING]")))

    def _tell(self, lines: Iterable[str]) -> Iterator[str]:
        """Gives lines that Ansible itself printed, and remembers that they were shown."""
        for line in lines:
            self.told.add(line)
            yield line

    def _take_schedule(self, host: str, whole: list[Event], left: list[Event]) -> None:
        progress = HostProgress(total=len(whole), done=len(whole) - len(left))
        for entry in whole:
            lane = progress.lanes.setdefault(entry["lane"], LaneProgress())
            lane.total += not entry["warmup"]
            lane.before += not entry["warmup"]
        for entry in left:
            progress.lanes[entry["lane"]].before -= not entry["warmup"]
        self.hosts[host] = progress

    def _take_bill(self, host: str, entries: list[Event]) -> None:
        progress = self.hosts.setdefault(host, HostProgress())
        for entry in entries:
            longest = max(moment["at_s"] for moment in entry["moments"])
            progress.bills[entry["lane"], entry["iteration"]] = longest

    def _take_billed(self, host: str, result: Event) -> Iterator[str]:
        """Shows a start or a probe of the bill; an entry is over with its last probe, or with a start that failed."""
        record, bills = result["record"], self.hosts[host].bills
        entry = record["lane"], record["iteration"]
        asked_s = record["bill"].get("asked_s")
        if record.get("status") != "ok" or asked_s == bills.get(entry):
            bills.pop(entry, None)
        yield f"[{host} bill, {len(bills)} left] {result.get('outcome', record['lane'])}"

    def _take_record(self, host: str, record: Event) -> bool:
        """Counts a measurement; the answer tells whether it is an entry of the schedule."""
        progress = self.hosts.get(host)
        lane = progress.lanes.get(record["lane"]) if progress is not None else None
        if progress is None or lane is None:
            return False  # a start that only prepares a checkpoint is measured too, but is no entry of the schedule
        progress.done += 1
        progress.moments.append(self._clock())
        seconds = _ready(record)
        if record.get("warmup"):
            return True
        if record.get("status") == "ok" and seconds is not None:
            lane.seconds.append(seconds)
        else:
            lane.failed += 1
        return True


_RECAP = (("ok", "ok"), ("changed", "changed"), ("failed", "failures"), ("unreachable", "dark"), ("rescued", "rescued"))


def _is_schedule(value: Any) -> bool:
    entries = isinstance(value, list) and bool(value)
    return entries and all(isinstance(entry, dict) and entry.keys() == SCHEDULE_KEYS for entry in value)


def _is_bill(value: Any) -> bool:
    entries = isinstance(value, list) and bool(value)
    return entries and all(isinstance(entry, dict) and entry.keys() == BILL_KEYS for entry in value)


def _is_billed(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("bill"), dict) and "lane" in record


def _is_measurement(record: Any) -> bool:
    return isinstance(record, dict) and record.get("kind") in ("cold", "restore") and "lane" in record


def _ready(record: Event) -> float | None:
    moments = record.get("t") or {}
    return moments.get("T4") if moments.get("T4") is not None else moments.get("T1")


def _debug_lines(message: Any) -> Iterator[str]:
    yield from (str(line) for line in (message if isinstance(message, list) else str(message).splitlines()))
