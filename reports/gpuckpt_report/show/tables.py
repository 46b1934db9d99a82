# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables that HTML, Markdown and terminal have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpuckpt_report.analysis import bill as bill_of_starts
from gpuckpt_report.analysis import stats
from gpuckpt_report.analysis.run import UNATTRIBUTED, CheckpointSize, FirstStart, HostAnalysis, LaneResult, ProbeResult
from gpuckpt_report.show.contents import PARTS, contents
from gpuckpt_report.show.phase_classes import named
from gpuckpt_report.text.table import Table
from gpuckpt_report.text.units import human_bytes, seconds, times

INTERVAL_OR_VALUES = "95 % interval, or the values"


def ranked(lanes: Sequence[LaneResult]) -> list[LaneResult]:
    """The lanes by their medians, fastest first, those without one last; lanes of another server come after all of these."""
    return sorted(lanes, key=lambda lane: (lane.server or "", lane.median is None, lane.median or 0.0))


def lanes(host: HostAnalysis) -> Table:
    """Median, p90, n, failures and ratio to the baseline of every lane, fastest first."""
    headings = [
        "lane",
        "median s",
        INTERVAL_OR_VALUES,
        "p90 s",
        "n",
        "failed",
        "× faster than baseline",
        "its interval",
    ]
    optional = [column for column in _OPTIONAL_LANE_COLUMNS if any(column.value(lane) != "–" for lane in host.lanes)]
    rows = []
    for lane in ranked(host.lanes):
        name = f"{lane.name} (baseline)" if lane.is_baseline else lane.name
        speed, interval = _speedup(lane)
        row = [name, seconds(lane.median), interval_or_values(lane, seconds), seconds(lane.p90), str(lane.n)]
        row += [_failures(lane), speed, interval]
        rows.append(row + [column.value(lane) for column in optional])
    return Table(headings + [column.heading for column in optional], rows)


def lanes_narrow(host: HostAnalysis) -> Table:
    """What a terminal of 80 columns has room for: medians and ratios to the baseline, with their intervals."""
    rows = []
    for lane in ranked(host.lanes):
        median, ratio = seconds(lane.median), "–" if lane.speedup is None else f"{times(lane.speedup.value)}"
        if lane.interval is not None:
            median += f" ({seconds(lane.interval.low)}–{seconds(lane.interval.high)})"
        if lane.speedup is not None and lane.speedup.interval is not None:
            ratio += f" ({times(lane.speedup.interval.low)}–{times(lane.speedup.interval.high)})"
        rows.append([lane.name, median, str(lane.n), str(lane.n_failed), "baseline" if lane.is_baseline else ratio])
    return Table(["lane", "median s (interval)", "n", "failed", "× faster (interval)"], rows)


def bill(host: HostAnalysis) -> Table | None:
    """What a start costs after the first token: the last one, and the time from token to token against a cold start.

    None where no lane has a canary of several tokens.
    """
    lanes = [lane for lane in host.lanes if lane.token_gaps]
    colds = {lane.server: lane for lane in reversed(lanes) if lane.kind == "cold"}
    rows = []
    for lane in lanes:
        against, cold = "–", colds.get(lane.server)
        if cold is not None and lane is not cold:
            ratio = stats.ratio(lane.token_gaps, cold.token_gaps, comparisons=max(1, len(lanes) - 1))
            against = times(ratio.value) + ("" if ratio.interval is None else f" ({times_interval(ratio)})")
        gap = f"{stats.median(lane.token_gaps) * 1000:.1f}"
        rows.append([lane.name, seconds(lane.moments["T4"]), seconds(lane.moments["T5"]), gap, against])
    headings = ["lane", "first token s", "last token s", "ms a further token", "against a cold start (interval)"]
    return Table(headings, rows) if rows else None


@dataclass(frozen=True)
class _Served:
    """A figure of servers under load: its name in ``bill.FIGURES``, its heading, and how a value is written."""

    name: str
    heading: str
    written: Callable[[float], str]


SERVED = (
    _Served("tokens_per_s", "tokens/s", lambda value: f"{value:.0f}"),
    _Served("token_s", "ms a token", lambda value: f"{value * 1000:.2f}"),
)


def served(host: HostAnalysis) -> Table | None:
    """Throughput and time per output token of servers under load at each moment, next to a cold start of the same server.

    None where no bill was taken.
    """
    lanes, moments = [lane for lane in host.lanes if lane.bill], bill_of_starts.moments(host)
    if not lanes:
        return None
    columns = [(moment, one) for moment in moments for one in SERVED]
    headings = [[f"{one.heading} {_when(moment)}", "× cold start (interval)"] for moment, one in columns]
    rows = [
        [
            lane.name,
            *(cell for moment, one in columns for cell in _served_cells(host, lane, moment, one)),
            _rounds(lane),
        ]
        for lane in lanes
    ]
    return Table(["lane", *(heading for pair in headings for heading in pair), "rounds"], rows)


def served_narrow(host: HostAnalysis) -> list[Table]:
    """The same for a terminal of 80 columns, a table for each figure; empty where no bill was taken."""
    lanes, moments = [lane for lane in host.lanes if lane.bill], bill_of_starts.moments(host)
    tables = []
    for one in SERVED if lanes else ():
        rows = []
        for lane in lanes:
            cells = []
            for figure in (bill_of_starts.figure(host, lane, moment, one.name) for moment in moments):
                ratio = figure.against_cold
                cells.append("–" if figure.median is None else one.written(figure.median))
                cells.append("–" if ratio is None else _bare(ratio.value))
                if ratio is not None and ratio.interval is not None:
                    cells[-1] += f" ({_bare(ratio.interval.low)}–{_bare(ratio.interval.high)})"
            rows.append([lane.name, *cells, _rounds(lane)])
        headings = [heading for moment in moments for heading in (_when(moment), "× cold")]
        tables.append(Table([one.heading, *headings, "rounds"], rows))
    return tables


def _bare(factor: float) -> str:
    """A factor whose heading has the sign."""
    return times(factor).rstrip("×")


def _when(moment: float) -> str:
    return "at once" if moment == 0 else f"after {moment:g} s"


def _rounds(lane: LaneResult) -> str:
    return str(len({sample.round for sample in lane.bill}))


def _served_cells(host: HostAnalysis, lane: LaneResult, moment: float, one: _Served) -> list[str]:
    """The median, or the values where they are too few to be compared; and the ratio to the cold start."""
    figure = bill_of_starts.figure(host, lane, moment, one.name)
    if figure.median is None:
        return ["–", "–"]
    few = len(figure.values) < stats.LEAST_SAMPLES
    value = ", ".join(one.written(each) for each in sorted(figure.values)) if few else one.written(figure.median)
    ratio = figure.against_cold
    return [value, "–" if ratio is None else f"{times(ratio.value)} ({times_interval(ratio)})"]


def served_note(host: HostAnalysis) -> str:
    """How the servers were loaded, and when their first requests really went out."""
    samples = [sample for lane in host.lanes for sample in lane.bill]
    if not samples:
        return ""
    sent = [
        f"{stats.median([sample.at_s for sample in samples if sample.asked_s == moment]):.1f} s"
        for moment in bill_of_starts.moments(host)
    ]
    loads = sorted({(sample.requests, sample.tokens) for sample in samples})
    load = " or ".join(f"{requests} requests at a time, {tokens} tokens in all" for requests, tokens in loads)
    return f"{load}; sent {' and '.join(sent)} (medians) after the start had returned and answered the canary."


def phases(host: HostAnalysis) -> Table | None:
    """Median seconds of each phase, a column per lane, fastest first; None where no lane has phases."""
    columns = [lane for lane in ranked(host.lanes) if lane.phases]
    if not columns:
        return None
    distinct = dict.fromkeys(part.name for lane in columns for part in lane.phases)
    names = sorted(distinct, key=lambda name: name == UNATTRIBUTED)
    medians = {lane.name: {part.name: part.median for part in lane.phases} for lane in columns}
    rows = [[named(name).title, *(seconds(medians[lane.name].get(name)) for lane in columns)] for name in names]
    return Table(["phase", *(lane.name for lane in columns)], rows)


def checkpoints(sizes: Sequence[CheckpointSize]) -> Table | None:
    """Size of every checkpoint, and what it holds; None where none was taken."""
    if not sizes:
        return None
    held = [kind for kind in PARTS if any(contents(size)[kind] for size in sizes)]
    archive = any(size.archive for size in sizes)
    headings = ["checkpoint", "dump s", "total", *(PARTS[kind] for kind in held), *["archive"] * archive]
    rows = [
        [size.lane, seconds(size.dump_s), human_bytes(size.total)]
        + [human_bytes(contents(size)[kind]) for kind in held]
        + [_bytes(size.archive)] * archive
        for size in sizes
    ]
    return Table(headings, rows)


def first_starts(starts: Sequence[FirstStart]) -> Table | None:
    """Starts of the servers that checkpoints are taken of; None where none was recorded."""
    if not starts:
        return None
    rows = [[start.server, seconds(start.healthy_s), seconds(start.first_token_s)] for start in starts]
    return Table(["first start of", "healthy s", "first token s"], rows)


def probes(results: Sequence[ProbeResult]) -> Table | None:
    """Warm-up requests; None where none were recorded."""
    if not results:
        return None
    rows = [
        [probe.lane, str(probe.n), seconds(probe.ttft_median), seconds(probe.ttft_p90), _rate(probe.tokens_per_s)]
        for probe in results
    ]
    return Table(["requests to", "n", "median first token s", "p90 s", "median tokens/s"], rows)


def golden(found: object) -> Table | None:
    """The golden checkpoints of a host, as its manifest tells them; None where there are none.

    A manifest is free in what it tells of a host: what is not as expected is left out.
    """
    entries = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    rows = [
        [
            str(one.get("name")),
            str(one.get("folder") or "–"),
            _mib(one.get("bytes")),
            str(one.get("made_at") or "–"),
            "no" if one.get("misfits") else "yes",
            _text(one, "history", "last_restored_at"),
            _text(one, "history", "restored"),
            _text(one, "worth", "saved_s"),
            _text(one, "worth", "gpu_saved_s"),
            _text(one, "worth", "made_s"),
            _text(one, "worth", "break_even"),
        ]
        for one in entries
    ]
    headings = ["golden checkpoint of", "folder", "MiB", "made", "fits", "last restored", "restores"]
    headings += ["saved a start s", "GPU-seconds saved a start", "took to make s", "pays after starts"]
    return Table(headings, rows) if rows else None


def _text(entry: Mapping[str, Any], *way: str) -> str:
    """A value deep in an entry; a dash where it has none."""
    value: Any = entry
    for step in way:
        value = value.get(step) if isinstance(value, dict) else None
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _mib(size: object) -> str:
    return f"{size >> 20}" if isinstance(size, int) else "–"


@dataclass(frozen=True)
class _Column:
    heading: str
    moment: str

    def value(self, lane: LaneResult) -> str:
        return seconds(lane.moments[self.moment])


class _FloorColumn:
    heading = "floor s"

    def value(self, lane: LaneResult) -> str:
        return seconds(lane.floor)


class _GpuMemoryColumn:
    heading = "GPU memory after stop"

    def value(self, lane: LaneResult) -> str:
        if lane.gpu_mem_after is None:
            return "–"
        low, high = (human_bytes(size) for size in lane.gpu_mem_after)
        return low if low == high else f"{low} … {high}"


_OPTIONAL_LANE_COLUMNS = (
    _FloorColumn(),
    _Column("returned s", "T1"),
    _Column("CUDA running s", "T2"),
    _Column("healthy s", "T3"),
    _GpuMemoryColumn(),
)


def interval_or_values(lane: LaneResult, written: Callable[[float], str]) -> str:
    """The interval of the lane's median; its values where there are too few for one.

    :param written: how a duration in seconds is written
    """
    if lane.interval is None:
        return ", ".join(written(value) for value in sorted(lane.values)) or "–"
    return f"{written(lane.interval.low)} … {written(lane.interval.high)}"


def times_interval(ratio: stats.Ratio) -> str:
    """The interval of a ratio, or a dash."""
    return "–" if ratio.interval is None else f"{times(ratio.interval.low)} … {times(ratio.interval.high)}"


def _speedup(lane: LaneResult) -> tuple[str, str]:
    if lane.is_baseline and lane.n:
        return "1", "–"
    if lane.speedup is None:
        return "–", "–"
    return times(lane.speedup.value), times_interval(lane.speedup)


def _failures(lane: LaneResult) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(lane.failures.items())) or "0"


def _bytes(size: int | None) -> str:
    return "–" if size is None else human_bytes(size)


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
