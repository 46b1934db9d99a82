# SPDX-License-Identifier: GPL-3.0-or-later
"""What a start does with its time, by classes of phases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpuckpt_report.analysis.run import UNATTRIBUTED, LaneResult, Phase
from gpuckpt_report.show.charts.axis import Axis
from gpuckpt_report.show.charts.canvas import CHARACTER, Drawing, Layout, in_both_layouts
from gpuckpt_report.show.phase_classes import CLASSES, REST, PhaseClass, named
from gpuckpt_report.text.units import human_seconds, seconds

# A phase chart is linear, so that lengths can be added by eye; lanes this many times shorter get a chart of their own.
SCALE_SPAN = 3
TRACK, BAR = 20.0, 17.0
# Phases that follow one another leave no gap that is wider than the rounding of their moments.
TOUCHING_S = 0.0005
# Classes whose bars are all narrower than a pixel are left out of the legend; a tooltip names them.
LEAST_NAMED = 1.0


@dataclass
class Bar:
    """Time in which phases of one class run, in seconds since the command was started."""

    phase_class: PhaseClass
    start: float
    end: float
    phases: list[Phase]

    @property
    def spoken(self) -> str:
        """The bar in words: its class, its length, and its phases."""
        inside = ", ".join(dict.fromkeys(named(phase.name).title for phase in self.phases))
        return f"{self.phase_class.title} {seconds(self.end - self.start)} s ({inside})"


def scale_groups(lanes: Sequence[LaneResult]) -> list[list[LaneResult]]:
    """Lanes that are legible on one linear scale, slowest group first; the lanes' order is kept within a group."""
    rest = [lane for lane in lanes if lane.median is not None and placed(lane)]
    groups = []
    while rest:
        least = max(lane.median or 0 for lane in rest) / SCALE_SPAN
        groups.append([lane for lane in rest if (lane.median or 0) >= least])
        rest = [lane for lane in rest if (lane.median or 0) < least]
    return groups


def phases(chart_id: str, shown: Sequence[LaneResult]) -> str:
    """The phases of each lane's median record on its clock; what runs during another class is drawn below it.

    :param shown: one of the groups of ``scale_groups``
    """
    return in_both_layouts(lambda layout: _draw(layout, chart_id, shown))


def bars(phases: Iterable[Phase]) -> list[Bar]:
    """Phases of one class that overlap or touch as one bar, by their starts, the longer ones first."""
    found: list[Bar] = []
    for phase in sorted(phases, key=lambda phase: (phase.start, -phase.end)):
        kind = named(phase.name).phase_class
        last = next((bar for bar in reversed(found) if bar.phase_class is kind), None)
        if last is not None and phase.start <= last.end + TOUCHING_S:
            last.end = max(last.end, phase.end)
            last.phases.append(phase)
        else:
            found.append(Bar(kind, phase.start, phase.end, [phase]))
    return sorted(found, key=lambda bar: (bar.start, -bar.end))


def tracks(found: Iterable[Bar]) -> list[list[Bar]]:
    """Bars on as few rows as possible so that none hides another; the longer one keeps the upper row."""
    rows: list[list[Bar]] = []
    for bar in sorted(found, key=lambda bar: (bar.start - bar.end, bar.start)):
        row = next((row for row in rows if not any(_overlap(bar, other) for other in row)), None)
        if row is None:
            rows.append([bar])
        else:
            row.append(bar)
    return rows


def _overlap(bar: Bar, other: Bar) -> bool:
    return bar.start < other.end - TOUCHING_S and other.start < bar.end - TOUCHING_S


def placed(lane: LaneResult) -> list[Phase]:
    """Phases with a place on the clock: ``unattributed`` is a total without one."""
    return [phase for phase in lane.phases if phase.name != UNATTRIBUTED]


def gaps(lane: LaneResult) -> list[Phase]:
    """Where the unattributed time lies: the stretches before the headline moment that no phase covers."""
    found, covered, ready = [], 0.0, ready_s(lane)
    starts = [(phase.start, phase.end) for phase in sorted(placed(lane), key=lambda phase: phase.start)]
    for start, end in [*starts, (ready, ready)]:
        if min(start, ready) > covered + TOUCHING_S:
            found.append(Phase(UNATTRIBUTED, covered, min(start, ready), min(start, ready) - covered))
        covered = max(covered, end)
    return found


def ready_s(lane: LaneResult) -> float:
    """The headline moment of the record that is drawn, in seconds."""
    ready = next(sample.value for sample in lane.samples if sample.seq == lane.phases_seq)
    assert ready is not None
    return ready


def _draw(layout: Layout, chart_id: str, shown: Sequence[LaneResult]) -> Drawing:
    ends = [max([phase.end for phase in placed(lane)] + [lane.median or 0]) for lane in shown]
    axis = Axis(layout, ends, log=False)
    rows = [(lane, tracks(bars([*placed(lane), *gaps(lane)]))) for lane in shown]
    described = "; ".join(f"{lane.name}: " + ", ".join(b.spoken for row in found for b in row) for lane, found in rows)
    drawing = Drawing(layout, chart_id, "Phases of the record nearest the median, per lane", described)
    axis.draw(drawing, 0, sum(_height(layout, found) for _, found in rows) + 2, "seconds since the command was started")
    top = 0.0
    for lane, found in rows:
        _row(drawing, axis, lane, found, top)
        top += _height(layout, found)
    all_bars = [bar for _, found in rows for row in found for bar in row]
    present = {bar.phase_class for bar in all_bars if axis.x(bar.end) - axis.x(bar.start) >= LEAST_NAMED}
    drawing.class_legend(kind for kind in CLASSES if kind in present)
    return drawing


def _height(layout: Layout, found: Sequence[Sequence[Bar]]) -> float:
    return layout.heading + TRACK * max(len(found), 1 if layout.names_above else 2) + 14


def _row(drawing: Drawing, axis: Axis, lane: LaneResult, found: Sequence[Sequence[Bar]], top: float) -> None:
    first = top + drawing.layout.heading + 5
    ready = ready_s(lane)
    name = f"{lane.name} (baseline)" if lane.is_baseline else lane.name
    drawing.row_name(name, top, first + BAR / 2, human_seconds(ready), strong=lane.is_baseline)
    for number, row in enumerate(found):
        for bar in row:
            _bar(drawing, bar, axis.x(bar.start), axis.x(bar.end), first + TRACK * number)
    x = axis.x(ready)
    drawing.line(x, first - 3, x, first + TRACK * len(found), "median")


def _bar(drawing: Drawing, bar: Bar, left: float, right: float, y: float) -> None:
    drawing.bar(left, y, right, BAR, bar.phase_class, bar.spoken)
    title = bar.phase_class.title
    if bar.phase_class is not REST and right - left > CHARACTER * len(title) + 8:
        drawing.text(left + 5, y + 12.5, title, f"inside k-{bar.phase_class.key}")
