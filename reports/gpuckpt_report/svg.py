# SPDX-License-Identifier: GPL-3.0-or-later
"""The report's charts as inline SVG: no script, no external resource, colours from the page's style sheet.

Every chart carries a title and a description for screen readers, and the report prints the same figures as a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from gpuckpt_report import stats
from gpuckpt_report.analysis import UNATTRIBUTED, CheckpointSize, LaneResult, Phase
from gpuckpt_report.units import human_bytes, human_seconds, seconds

WIDTH = 1020
LABELS = 290
MARGIN = 150
PLOT = WIDTH - LABELS - MARGIN
PALETTE_SIZE = 12
# Beyond this ratio of the largest to the smallest value, a linear axis would press the small ones into one pixel.
LOG_FROM_RATIO = 15
# A phase chart is linear, so that lengths can be added by eye; lanes this many times shorter get a chart of their own.
SCALE_SPAN = 6
CHARACTER = 6.6
BINARY_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))


class Axis:
    """Seconds or bytes to pixels, with ticks at round values."""

    def __init__(self, values: Sequence[float], log: bool | None = None) -> None:
        low, self.high = min(values), max(values)
        self.log = low > 0 and self.high / low > LOG_FROM_RATIO if log is None else log
        if self.log:
            self.low, self.high = low / 1.3, self.high * 1.15
        else:
            self.low, self.high = 0.0, (self.high or 1.0) * 1.04

    def x(self, value: float) -> float:
        """The horizontal pixel of a value."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = value / self.high
        return LABELS + PLOT * min(share, 1.0)

    def ticks(self) -> list[float]:
        """Round values within the axis, six or so."""
        if self.log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            ticks = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
            return [tick for tick in ticks if self.low <= tick <= self.high]
        raw = self.high / 6
        power = 10 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
        return [step * number for number in range(int(self.high / step) + 1)]


@dataclass
class Drawing:
    """SVG elements, collected top down."""

    chart_id: str
    title: str
    description: str
    height: float = 0

    def __post_init__(self) -> None:
        self.elements: list[str] = []

    def text(self, x: float, y: float, content: str, css: str = "", anchor: str = "start") -> None:
        """A line of text with its baseline at y."""
        self.elements.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(content)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line."""
        self.elements.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>')

    def box(self, x1: float, y: float, x2: float, height: float, css: str, tooltip: str = "") -> None:
        """A filled box from x1 to x2, at least a hair wide, so that nothing that exists is invisible."""
        width = max(x2 - x1, 0.75)
        place = f'x="{x1:.2f}" y="{y:.1f}" width="{width:.2f}" height="{height:.1f}"'
        self.elements.append(f'<rect {place} class="{css}">{_tooltip(tooltip)}</rect>')

    def dot(self, x: float, y: float, css: str, tooltip: str) -> None:
        """A sample."""
        self.elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="{css}">{_tooltip(tooltip)}</circle>')

    def grid(self, axis: Axis, top: float, bottom: float, label: str, tick_text: list[str]) -> None:
        """Vertical lines at the ticks, their values, and the axis' name below."""
        for tick, text in zip(axis.ticks(), tick_text, strict=True):
            x = axis.x(tick)
            self.line(x, top, x, bottom, "grid")
            self.text(x, bottom + 16, text, "tick", "middle")
        if axis.log:
            label += " · logarithmic scale"
        self.text(LABELS + PLOT / 2, bottom + 34, label, "tick", "middle")
        self.height = bottom + 44

    def legend(self, entries: Iterable[tuple[str, str]]) -> None:
        """Colour keys in as many rows as they need, below what was drawn."""
        x, y = 0.0, self.height + 12
        for css, name in entries:
            width = 40 + CHARACTER * len(name)
            if x + width > WIDTH:
                x, y = 0.0, y + 20
            self.box(x, y - 10, x + 12, 12, css)
            self.text(x + 18, y, name, "key")
            x += width
        self.height = y + 10

    def markup(self) -> str:
        """The whole <svg> element."""
        title, description = f"{self.chart_id}-title", f"{self.chart_id}-desc"
        return "\n".join(
            [
                f'<svg viewBox="0 0 {WIDTH} {self.height:.0f}" role="img" aria-labelledby="{title} {description}">',
                f'<title id="{title}">{escape(self.title)}</title>',
                f'<desc id="{description}">{escape(self.description)}</desc>',
                *self.elements,
                "</svg>",
            ]
        )


def distribution(chart_id: str, lanes: Sequence[LaneResult], metric_name: str) -> str:
    """One row per lane: every sample, box from the first to the third quartile, median; floor where it is known."""
    measured = [lane for lane in lanes if lane.values]
    if not measured:
        return ""
    points = [value for lane in measured for value in lane.values]
    axis = Axis(points + [lane.floor for lane in measured if lane.floor])
    drawing = Drawing(
        chart_id,
        f"Seconds until ready ({metric_name}) per lane",
        "; ".join(
            f"{lane.name}: median {seconds(lane.median)} s, {lane.n} ok, {lane.n_failed} failed" for lane in lanes
        ),
    )
    height = 42
    bottom = height * len(lanes) + 6
    drawing.grid(axis, 0, bottom, f"{metric_name}, s", [f"{tick:g}" for tick in axis.ticks()])
    for row, lane in enumerate(lanes):
        _distribution_row(drawing, axis, lane, row * height + 24)
    keys = [("median-key", "median"), ("quartiles", "middle half"), ("sample", "one iteration")]
    if any(lane.floor for lane in lanes):
        keys.append(("floor-key", "floor: this node cannot be faster"))
    drawing.legend(keys)
    return drawing.markup()


def drift(chart_id: str, lanes: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """Every sample in the order of the run, by how far it lies from its lane's median.

    :param lanes: kind of each lane, and its samples as (number in the run, log of seconds over the median)
    """
    points = [point for _, group in lanes for point in group]
    if len(points) < 2:
        return ""
    first, last = (choose(place for place, _ in points) for choose in (min, max))
    reach = max(0.02, *(abs(math.expm1(value)) for _, value in points))
    drawing = Drawing(
        chart_id, "Drift over the run", f"{len(points)} samples, at most {reach:.0%} from the median of their lane"
    )
    height, middle = 150.0, 80.0
    for share in (-reach, 0.0, reach):
        y = middle - share / reach * height / 2
        drawing.line(LABELS, y, LABELS + PLOT, y, "grid")
        drawing.text(LABELS - 14, y + 4, f"{share:+.0%}" if share else "lane's median", "tick", "end")
    for kind, group in lanes:
        for place, value in group:
            x = LABELS + PLOT * (place - first) / max(1.0, last - first)
            share = max(-reach, min(reach, math.expm1(value)))
            css = "sample cold" if kind == "cold" else "sample restore"
            drawing.dot(x, middle - share / reach * height / 2, css, f"entry {place:.0f}: {math.expm1(value):+.1%}")
    drawing.text(LABELS + PLOT / 2, middle + height / 2 + 24, "entries in the order of the run", "tick", "middle")
    drawing.height = middle + height / 2 + 34
    return drawing.markup()


def _distribution_row(drawing: Drawing, axis: Axis, lane: LaneResult, y: float) -> None:
    drawing.text(LABELS - 14, y + 4, _fitting(lane.name), "label baseline" if lane.is_baseline else "label", "end")
    end = LABELS + PLOT + 12
    if lane.n_failed:
        drawing.text(end, y + 18, f"{lane.n_failed} failed", "failed")
    if lane.median is None:
        drawing.text(LABELS + 6, y + 4, "no iteration succeeded", "failed")
        return
    css = "cold" if lane.kind == "cold" else "restore"
    quartiles = [stats.quantile(lane.values, q) for q in (0.25, 0.75)]
    drawing.box(axis.x(quartiles[0]), y - 12, axis.x(quartiles[1]), 24, f"quartiles {css}")
    for number, sample in enumerate(s for s in lane.samples if s.value is not None):
        assert sample.value is not None
        offset = (number % 5 - 2) * 3.5
        tooltip = f"iteration {sample.iteration}: {seconds(sample.value)} s"
        drawing.dot(axis.x(sample.value), y + offset, f"sample {css}", tooltip)
    x = axis.x(lane.median)
    drawing.line(x, y - 15, x, y + 15, "median")
    if lane.floor:
        drawing.line(axis.x(lane.floor), y - 18, axis.x(lane.floor), y + 18, "floor")
    drawing.text(end, y + 4, human_seconds(lane.median), "value")


def scale_groups(lanes: Sequence[LaneResult]) -> list[list[LaneResult]]:
    """Lanes that are legible on one linear scale, slowest group first; the lanes' order is kept within a group."""
    rest = [lane for lane in lanes if lane.median is not None and _placed(lane)]
    groups = []
    while rest:
        least = max(lane.median or 0 for lane in rest) / SCALE_SPAN
        groups.append([lane for lane in rest if (lane.median or 0) >= least])
        rest = [lane for lane in rest if (lane.median or 0) < least]
    return groups


def phases(chart_id: str, shown: Sequence[LaneResult], colours: dict[str, int]) -> str:
    """The phases of each lane's median record on its clock; what runs beside another phase is drawn below it.

    :param shown: one of the groups of ``scale_groups``
    """
    ends = [max([phase.end for phase in _placed(lane)] + [lane.median or 0]) for lane in shown]
    axis = Axis(ends, log=False)
    drawing = Drawing(
        chart_id,
        "Phases of the record nearest the median, per lane",
        "; ".join(f"{lane.name}: " + ", ".join(_spoken(phase) for phase in _placed(lane)) for lane in shown),
    )
    rows = [(lane, _tracks(_placed(lane))) for lane in shown]
    bottom = sum(_row_height(tracks) for _, tracks in rows) + 4
    drawing.grid(axis, 0, bottom, "seconds since the command was started", [f"{tick:g}" for tick in axis.ticks()])
    y = 8.0
    for lane, tracks in rows:
        _phase_row(drawing, axis, lane, tracks, colours, y)
        y += _row_height(tracks)
    present = {phase.name for lane in shown for phase in _placed(lane)}
    drawing.legend([(f"c{colour}", name) for name, colour in colours.items() if name in present])
    return drawing.markup()


def _placed(lane: LaneResult) -> list[Phase]:
    """``unattributed`` is a total without a place on the clock."""
    return [phase for phase in lane.phases if phase.name != UNATTRIBUTED]


def _spoken(phase: Phase) -> str:
    return f"{phase.name} {seconds(phase.end - phase.start)} s"


def _row_height(tracks: list[list[Phase]]) -> float:
    return 22 * len(tracks) + 16


def _tracks(placed: Iterable[Phase]) -> list[list[Phase]]:
    """Phases on as few rows as possible so that none hides another; the longer one keeps the upper row."""
    tracks: list[list[Phase]] = []
    for phase in sorted(placed, key=lambda phase: (phase.start, -phase.end)):
        track = next((track for track in tracks if track[-1].end <= phase.start + 1e-6), None)
        if track is None:
            tracks.append([phase])
        else:
            track.append(phase)
    return tracks


def _phase_row(
    drawing: Drawing, axis: Axis, lane: LaneResult, tracks: list[list[Phase]], colours: dict[str, int], top: float
) -> None:
    drawing.text(LABELS - 14, top + 14, _fitting(lane.name), "label baseline" if lane.is_baseline else "label", "end")
    for number, track in enumerate(tracks):
        y = top + 22 * number
        for phase in track:
            left, right = axis.x(phase.start), axis.x(phase.end)
            drawing.box(left, y, right, 18, f"c{colours[phase.name]}", _spoken(phase))
            if right - left > CHARACTER * len(phase.name) + 8:
                drawing.text(left + 4, y + 13, phase.name, "inside")
    ready = next(sample.value for sample in lane.samples if sample.seq == lane.phases_seq)
    assert ready is not None
    drawing.line(axis.x(ready), top - 4, axis.x(ready), top + 22 * len(tracks), "median")
    drawing.text(LABELS + PLOT + 12, top + 13, f"{seconds(ready)} s", "value")
    rest = next((phase for phase in lane.phases if phase.name == UNATTRIBUTED), None)
    if rest is not None:
        drawing.text(LABELS + PLOT + 12, top + 27, f"unattributed {seconds(rest.end - rest.start)}", "tick")


def sizes(chart_id: str, checkpoints: Sequence[CheckpointSize], colours: dict[str, int]) -> str:
    """One stacked bar per checkpoint, by kind of image."""
    if not any(checkpoint.total for checkpoint in checkpoints):
        return ""
    largest = max(sum(checkpoint.images.values()) for checkpoint in checkpoints)
    unit, unit_name = next((size, name) for size, name in BINARY_UNITS if largest >= size or size == 1)
    axis = Axis([largest / unit], log=False)
    drawing = Drawing(
        chart_id,
        "Checkpoint size by kind of image",
        "; ".join(f"{checkpoint.lane}: {human_bytes(checkpoint.total)}" for checkpoint in checkpoints),
    )
    height = 34
    bottom = height * len(checkpoints) + 4
    drawing.grid(axis, 0, bottom, f"image files, {unit_name}", [f"{tick:g}" for tick in axis.ticks()])
    for row, checkpoint in enumerate(checkpoints):
        y = row * height + 8
        drawing.text(LABELS - 14, y + 15, _fitting(checkpoint.lane), "label", "end")
        start = 0.0
        for kind, size in checkpoint.images.items():
            tooltip = f"{kind}: {human_bytes(size)}"
            drawing.box(axis.x(start / unit), y, axis.x((start + size) / unit), 20, f"c{colours[kind]}", tooltip)
            start += size
        drawing.text(LABELS + PLOT + 12, y + 15, human_bytes(checkpoint.total), "value")
    drawing.legend([(f"c{colour}", kind) for kind, colour in colours.items()])
    return drawing.markup()


def colours_of(names: Iterable[str]) -> dict[str, int]:
    """A colour number for each name, the same one in every chart of a report."""
    distinct = dict.fromkeys(name for name in names if name != UNATTRIBUTED)
    return {name: number % PALETTE_SIZE for number, name in enumerate(distinct)}


def _fitting(name: str) -> str:
    """The name, or as much of its end as there is room for: it is the end that tells names apart."""
    room = int((LABELS - 14) / CHARACTER)
    return name if len(name) <= room else "…" + name[1 - room :]


def _tooltip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
