# SPDX-License-Identifier: GPL-3.0-or-later
"""A lane over all runs: its levels, the changes between them, and the shifts that somebody accepted.

A run is one value, the logarithm of its median, as in ``compare``: what drifts from run to run counts in full. After
each run, every place that leaves ``compare.RUNS_A_SIDE`` runs on both sides is tried as the place of a change. The spread
between runs is the yardstick. A change starts a new level, and so does an accepted shift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gpuckpt_report.analysis import compare, noise, stats
from gpuckpt_report.analysis.run import HostAnalysis, LaneResult, RunAnalysis
from gpuckpt_report.errors import ReportError
from gpuckpt_report.records.schema import LaneName, Name, RunManifest, explain
from gpuckpt_report.records.store import RunFolder
from gpuckpt_report.records.vocabulary import MEASURED_KINDS, Metric
from gpuckpt_report.text.table import Table
from gpuckpt_report.text.units import seconds

ACCEPTED_FILE = "accepted-shifts.yml"
# Twenty runs are looked at 15 times, at 120 places in all. As neighbouring places agree, an interval for 60 holds the
# promise: tests/unit/reports/analysis/test_history.py simulates at most 5 false alarms in 100 histories of 20 identical runs.
COMPARISONS = 60
SLOWER, FASTER, ACCEPTED = compare.SLOWER, compare.FASTER, "accepted"
OTHER, EMPTY = "other", "no good record"


class AcceptedShift(BaseModel):
    """One entry of the file: from this run on, the lane has a new level."""

    model_config = ConfigDict(extra="forbid")

    run: Name
    lane: LaneName
    host: Name | None = None
    reason: str = Field(min_length=1)
    date: date


@dataclass(frozen=True)
class Point:
    """A lane in one run on one host; times in seconds.

    ``verdict`` is empty where the level goes on; ``why`` says what differs, or why a shift was accepted.
    """

    run_id: str
    host: str
    started_at: str
    commit: str
    median: float | None
    interval: stats.Interval | None
    n: int
    failed: int
    grade: str
    manifest: RunManifest = field(repr=False)
    verdict: str = ""
    why: str = ""
    estimate: stats.LogEstimate | None = None

    @property
    def is_change(self) -> bool:
        """Whether a new level was found here that nobody accepted."""
        return self.verdict in (SLOWER, FASTER)

    @property
    def change(self) -> str:
        """The change in words, with its interval."""
        if self.estimate is None:
            return ""
        bounds = self.estimate.interval(COMPARISONS)
        middle = math.expm1(self.estimate.value)
        return f"{self.verdict} by {abs(middle):.0%} ({bounds.low - 1:+.0%} … {bounds.high - 1:+.0%})"

    def document(self) -> dict[str, Any]:
        """For JSON; ratios are after/before."""
        bounds = None if self.estimate is None else self.estimate.interval(COMPARISONS)
        return {
            "run_id": self.run_id,
            "host": self.host,
            "started_at": self.started_at,
            "commit": self.commit or None,
            "median": self.median,
            "interval": None if self.interval is None else {"low": self.interval.low, "high": self.interval.high},
            "n": self.n,
            "failed": self.failed,
            "machine": self.grade,
            "verdict": self.verdict or None,
            "why": self.why or None,
            "ratio": None if self.estimate is None else math.exp(self.estimate.value),
            "ratio_interval": None if bounds is None else [bounds.low, bounds.high],
        }


@dataclass(frozen=True)
class History:
    """A lane on one host, oldest run first; ``could_find`` is the change, as a share, that three more runs would show."""

    host: str
    lane: str
    points: list[Point]
    level_runs: int
    could_find: float | None

    @property
    def alarms(self) -> list[Point]:
        """Changes that nobody accepted, and the newest run if it has no good record."""
        newest = self.points[-1:]
        return [point for point in self.points if point.is_change] + [
            point for point in newest if point.verdict == EMPTY
        ]


def read_accepted(path: Path) -> list[AcceptedShift]:
    """The accepted shifts of a file; none if there is no such file.

    :raises ReportError: if it is not a list of shifts, naming every error
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path} cannot be read: {error}") from None
    try:
        return TypeAdapter(list[AcceptedShift]).validate_python(yaml.safe_load(text) or [])
    except yaml.YAMLError as error:
        raise ReportError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    except ValidationError as error:
        raise ReportError("\n  ".join([f"{path} is not a list of accepted shifts:", *explain(error)])) from None


def histories(
    runs: Sequence[tuple[RunFolder, RunAnalysis]],
    lane: str,
    accepted: Sequence[AcceptedShift] = (),
    host: str | None = None,
    allowed: Sequence[str] = (),
    metric: Metric | None = None,
) -> list[History]:
    """The history of a lane on each host that has it.

    :param runs: oldest first
    :param metric: which moment is compared; without it, what the newest run measures
    :param host: this host alone
    :param allowed: of ``compare.ALLOWABLE``, what may differ from the newest run; runs that differ else are left out
    """
    points: dict[str, list[Point]] = {}
    chosen = metric or (runs[-1][1].manifest.metric if runs else "T4")
    for folder, run in runs:
        for found in run.hosts:
            for result in found.lanes:
                if result.name == lane and host in (None, found.host):
                    times = _times(folder, run.manifest, found.host, result, chosen)
                    points.setdefault(found.host, []).append(_point(run.manifest, found, result, times))
    return [_history(name, lane, of_host, accepted, allowed) for name, of_host in sorted(points.items())]


def _times(folder: RunFolder, manifest: RunManifest, host: str, lane: LaneResult, metric: Metric) -> list[float]:
    """Seconds of the lane's good starts until a moment."""
    if metric == manifest.metric:
        return lane.values
    found = [
        getattr(record.t, metric)
        for record in folder.stream()
        if (record.host, record.lane, record.status) == (host, lane.name, "ok")
        and record.kind in MEASURED_KINDS
        and not record.warmup
    ]
    return [value for value in found if value is not None]


def _point(manifest: RunManifest, host: HostAnalysis, lane: LaneResult, times: Sequence[float]) -> Point:
    return Point(
        run_id=manifest.run_id,
        host=host.host,
        started_at=f"{manifest.started_at:%Y-%m-%d %H:%M}",
        commit=(manifest.git.sha or "")[:12],
        median=stats.median(times) if times else None,
        interval=stats.median_interval(times),
        n=len(times),
        failed=lane.n_failed,
        grade=noise.judge(host).grade,
        manifest=manifest,
        verdict="" if times else EMPTY,
    )


def _history(
    host: str, lane: str, points: list[Point], accepted: Sequence[AcceptedShift], allowed: Sequence[str]
) -> History:
    newest = points[-1].manifest
    points = [_labelled(point, newest, lane, allowed) for point in points]
    shifts = {shift.run: shift for shift in accepted if shift.lane == lane and shift.host in (None, host)}
    places = [place for place, point in enumerate(points) if point.verdict not in (OTHER, EMPTY)]
    values = [math.log(points[place].median or math.nan) for place in places]
    starts = [number for number, place in enumerate(places) if points[place].run_id in shifts]
    levels = find_levels(values, starts)
    for before, level in zip([None, *levels], levels):
        place = places[level.start]
        shift = shifts.get(points[place].run_id)
        if shift is not None:
            points[place] = replace(points[place], verdict=ACCEPTED, why=shift.reason)
        elif before is not None:
            points[place] = _changed(lane, points[places[level.start - 1]], points[place], before, level, values)
    last = levels[-1] if levels else None
    return History(
        host, lane, points, last.end - last.start if last else 0, _could_find(values[last.start :]) if last else None
    )


def _labelled(point: Point, newest: RunManifest, lane: str, allowed: Sequence[str]) -> Point:
    """The point, marked if its run measured something else than the newest."""
    differences = compare.unlike(newest, point.manifest, point.host, lane, allowed)
    return replace(point, verdict=OTHER, why="; ".join(differences)) if differences else point


@dataclass(frozen=True)
class Level:
    """Runs between which nothing changed: first, and the one behind the last."""

    start: int
    end: int


def find_levels(values: Sequence[float], starts: Sequence[int] = ()) -> list[Level]:
    """The levels of a sequence of logarithms, as they would have been found run by run.

    A change that was found stays where it was found, whatever comes later.

    :param starts: places at which a level starts in any case
    """
    begins: list[int] = [0] if values else []
    for place in range(len(values)):
        if place in starts:
            begins += [place] if place else []
            continue
        found = _place_of_change(values[begins[-1] : place + 1])
        if found is not None:
            begins.append(begins[-1] + found)
    return [Level(start, end) for start, end in zip(begins, [*begins[1:], len(values)])]


def _place_of_change(values: Sequence[float]) -> int | None:
    """Where the newest level begins, if the values tell that there is one."""
    side = compare.RUNS_A_SIDE
    tried = [stats.change_of_means(values[:cut], values[cut:]) for cut in range(side, len(values) - side + 1)]
    if not any(_is_sure(estimate) for estimate in tried):
        return None
    # A run of the new level among those before, or the other way round, may already tell that there is a change. Where it
    # is, is a question of its own.
    cuts = range(2, len(values) - 1)
    return max(cuts, key=lambda cut: _clearness(stats.change_of_means(values[:cut], values[cut:])))


def _is_sure(estimate: stats.LogEstimate) -> bool:
    return abs(math.expm1(estimate.value)) >= compare.LEAST_CHANGE and not estimate.interval(COMPARISONS).contains(1.0)


def _clearness(estimate: stats.LogEstimate) -> float:
    return abs(estimate.value) / estimate.error if estimate.error else math.inf


def _changed(lane: str, former: Point, point: Point, before: Level, level: Level, values: Sequence[float]) -> Point:
    """The first run of a level, with how far it lies from the level before, and what else changed with it."""
    estimate = stats.change_of_means(values[before.start : before.end], values[level.start : level.end])
    others = compare.changed_with_it(former.manifest, point.manifest, point.host, lane)
    verdict = SLOWER if estimate.value > 0 else FASTER
    return replace(point, verdict=verdict, estimate=estimate, why="; ".join(others))


def _could_find(level: Sequence[float]) -> float | None:
    """The smallest change, as a share, that three more runs would show 9 times of 10."""
    n, more = len(level), compare.RUNS_A_SIDE
    if n < more:
        return None
    middle = sum(level) / n
    spread = sum((value - middle) ** 2 for value in level) / (n - 1)
    return stats.LogEstimate(0.0, math.sqrt(spread * (1 / n + 1 / more)), n + more - 2).could_find(COMPARISONS)


def table(found: Sequence[History]) -> Table:
    """The histories as a table of 80 columns."""
    many = len(found) > 1
    rows = [_row(point, many) for history in found for point in history.points]
    headings = ["run", *(["host"] if many else []), "commit", "median s", "interval", "n", "failed", "machine", ""]
    return Table(headings, rows)


def _row(point: Point, with_host: bool) -> list[str]:
    bounds = "–" if point.interval is None else f"{seconds(point.interval.low)}–{seconds(point.interval.high)}"
    grade = "?" if point.grade == noise.UNKNOWN else point.grade
    figures = [seconds(point.median), bounds, str(point.n), str(point.failed), grade]
    return [
        point.run_id,
        *([point.host] if with_host else []),
        point.commit[:7] or "–",
        *figures,
        point.verdict.upper() if point.is_change or point.verdict == EMPTY else point.verdict,
    ]


def sentences(history: History, accepted: Path) -> list[str]:
    """What the table does not say: changes with their intervals and how to accept them, accepted ones, what is left out.

    Entries for the file are several lines, to be printed as they are.
    """
    lines = []
    for point in history.points:
        what = f"{history.host}, run {point.run_id}"
        if point.is_change:
            lines.append(f"{what}: {point.change}. {_with_it(point)} If that is meant to be, add to {accepted}:")
            lines.append(entry(history, point))
        elif point.verdict == ACCEPTED:
            lines.append(f"{what}: an accepted shift, a new level: {point.why}")
        elif point.verdict == OTHER:
            lines.append(f"{what}: left out, it measured something else: {point.why}")
        elif point.verdict == EMPTY:
            lines.append(f"{what}: no good record of the lane; `gpuckpt show {point.run_id}` tells why")
    return [*lines, f"{history.host}: {_outlook(history)}"]


def entry(history: History, point: Point) -> str:
    """What accepts a change in the file of shifts, several lines."""
    keys = {"run": point.run_id, "lane": history.lane, "host": history.host, "reason": "WHY", "date": f"{date.today()}"}
    lines = [f"{'  - ' if key == 'run' else '    '}{key}: {value}" for key, value in keys.items()]
    return "\n".join(lines)


def _with_it(point: Point) -> str:
    return f"With it changed: {point.why}." if point.why else "Nothing else that the runs note changed with it."


def _outlook(history: History) -> str:
    runs = "1 run" if history.level_runs == 1 else f"{history.level_runs} runs"
    least = 2 * compare.RUNS_A_SIDE
    if history.level_runs < least:
        return f"the present level has {runs}; changes are looked for from {least} on, {compare.RUNS_A_SIDE} a side."
    if history.could_find is None:
        return f"the present level has {runs}."
    return (
        f"the present level has {runs}; a change of {history.could_find:.0%} would be found with "
        f"{compare.RUNS_A_SIDE} more (9 times of 10)."
    )


def unused(accepted: Sequence[AcceptedShift], found: Sequence[History]) -> list[str]:
    """Accepted shifts of the lane that no run of it matches, in words: a misspelt one accepts nothing."""
    if not found:
        return []
    seen = {(history.host, point.run_id) for history in found for point in history.points}
    return [
        f"the accepted shift of {shift.lane} at {shift.run} matches no run here"
        for shift in accepted
        if shift.lane == found[0].lane
        and not any(run == shift.run and shift.host in (None, host) for host, run in seen)
    ]


def document(history: History) -> dict[str, Any]:
    """For JSON; times in seconds."""
    return {
        "host": history.host,
        "lane": history.lane,
        "level_runs": history.level_runs,
        "could_find": history.could_find,
        "alarms": [point.run_id for point in history.alarms],
        "runs": [point.document() for point in history.points],
    }
