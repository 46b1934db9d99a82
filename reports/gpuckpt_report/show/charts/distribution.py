# SPDX-License-Identifier: GPL-3.0-or-later
"""Every measured start of every lane, with the median and its interval."""

from __future__ import annotations

from collections.abc import Sequence

from gpuckpt_report.analysis.run import LaneResult
from gpuckpt_report.show.charts.axis import Axis
from gpuckpt_report.show.charts.canvas import Drawing, Layout, in_both_layouts
from gpuckpt_report.text.units import human_seconds, seconds

ROW = 46.0


def distribution(chart_id: str, lanes: Sequence[LaneResult], metric_name: str) -> str:
    """One row per lane, in the order given: samples, median, the interval of the median; floor where it is known."""
    if not any(lane.values for lane in lanes):
        return ""
    return in_both_layouts(lambda layout: _draw(layout, chart_id, lanes, metric_name))


def _draw(layout: Layout, chart_id: str, lanes: Sequence[LaneResult], metric_name: str) -> Drawing:
    points = [value for lane in lanes for value in lane.values]
    axis = Axis(layout, points + [lane.floor for lane in lanes if lane.floor])
    spoken = "; ".join(_spoken(lane) for lane in lanes)
    drawing = Drawing(layout, chart_id, f"Seconds until ready ({metric_name}) per lane", spoken)
    row = ROW + layout.heading
    axis.draw(drawing, 0, row * len(lanes) + 4, f"{metric_name}, seconds")
    for number, lane in enumerate(lanes):
        _row(drawing, axis, lane, row * number)
    _legend(drawing, lanes)
    return drawing


def _spoken(lane: LaneResult) -> str:
    bounds = "no interval"
    if lane.interval is not None:
        bounds = f"interval {seconds(lane.interval.low)} to {seconds(lane.interval.high)} s"
    return f"{lane.name}: median {seconds(lane.median)} s, {bounds}, {lane.n} ok, {lane.n_failed} failed"


def _row(drawing: Drawing, axis: Axis, lane: LaneResult, top: float) -> None:
    y = top + drawing.layout.heading + 17
    name = f"{lane.name} (baseline)" if lane.is_baseline else lane.name
    value = "no good start" if lane.median is None else human_seconds(lane.median)
    note = f"n = {lane.n}" + (f", {lane.n_failed} failed" if lane.n_failed else "")
    if drawing.layout.names_above:
        value = f"{value} ({note})"
    drawing.row_name(name, top, y, value, strong=lane.is_baseline)
    if not drawing.layout.names_above:
        drawing.row_note(note, y + 21, "failed" if lane.n_failed else "tick")
    if lane.median is None:
        return
    if lane.floor:
        x = axis.x(lane.floor)
        drawing.line(x, y - 12, x, y + 20, "floor")
    css = "sample cold" if lane.kind == "cold" else "sample"
    for number, sample in enumerate(s for s in lane.samples if s.value is not None):
        assert sample.value is not None
        tooltip = f"iteration {sample.iteration}: {seconds(sample.value)} s"
        drawing.dot(axis.x(sample.value), y - 2 + (number % 5 - 2) * 3, css, tooltip)
    if lane.interval is not None:
        drawing.interval(axis.x(lane.interval.low), axis.x(lane.interval.high), y + 15)
    drawing.line(axis.x(lane.median), y - 12, axis.x(lane.median), y + 20, "median")


def _legend(drawing: Drawing, lanes: Sequence[LaneResult]) -> None:
    keys = [
        (lambda x, y: drawing.dot(x + 8, y + 6, "sample", ""), "one start"),
        (lambda x, y: drawing.line(x + 8, y - 1, x + 8, y + 13, "median"), "median"),
    ]
    if any(lane.kind == "cold" for lane in lanes):
        keys.insert(1, (lambda x, y: drawing.dot(x + 8, y + 6, "sample cold", ""), "one cold start"))
    if any(lane.interval for lane in lanes):
        keys.append((lambda x, y: drawing.interval(x + 1, x + 15, y + 6), "95 % interval of the median"))
    if any(lane.floor for lane in lanes):
        keys.append(
            (lambda x, y: drawing.line(x + 8, y - 1, x + 8, y + 13, "floor"), "floor: this node cannot be faster")
        )
    drawing.legend(keys)
