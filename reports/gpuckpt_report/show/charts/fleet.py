# SPDX-License-Identifier: GPL-3.0-or-later
"""How a lane's times lie over many hosts: in seconds, and as shares of the fleet's median."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpuckpt_report.analysis import stats
from gpuckpt_report.analysis.fleet import FleetLane
from gpuckpt_report.show.charts.axis import Axis
from gpuckpt_report.show.charts.canvas import CHARACTER, Drawing, Layout, in_both_layouts
from gpuckpt_report.text.units import human_seconds, seconds

ROW = 46.0
BIN_ROW = 54.0
# More hosts than these are counted in columns; single ones could not be told apart.
MOST_DOTS = 60
BINS = 48
MOST_OUTLIERS = 40
# What lies farther out is drawn at the edge, so that one host does not press all others together.
LEAST_REACH, MOST_REACH = 0.1, 1.0


def times(chart_id: str, lanes: Sequence[FleetLane], metric_name: str) -> str:
    """One row per lane: from the fastest host to the slowest, the middle 80 % of hosts, median and its interval."""
    if not any(lane.medians for lane in lanes):
        return ""
    return in_both_layouts(lambda layout: _draw_times(layout, chart_id, lanes, metric_name))


def _draw_times(layout: Layout, chart_id: str, lanes: Sequence[FleetLane], metric_name: str) -> Drawing:
    axis = Axis(layout, [value for lane in lanes for value in (*lane.values[:1], *lane.values[-1:])])
    spoken = "; ".join(_spoken(lane) for lane in lanes)
    drawing = Drawing(layout, chart_id, f"Seconds until ready ({metric_name}) per lane, over hosts", spoken)
    row = ROW + layout.heading
    axis.draw(drawing, 0, row * len(lanes) + 4, f"{metric_name}, seconds")
    for number, lane in enumerate(lanes):
        _times_row(drawing, axis, lane, row * number)
    drawing.legend(
        [
            (lambda x, y: drawing.line(x + 8, y - 1, x + 8, y + 13, "median"), "median of hosts"),
            (lambda x, y: drawing.box(x, y, x + 16, 12, "band"), "middle 80 % of hosts"),
            (lambda x, y: drawing.line(x, y + 6, x + 16, y + 6, "reach"), "fastest to slowest host"),
            (lambda x, y: drawing.interval(x + 1, x + 15, y + 6), "95 % interval of the median"),
        ]
    )
    return drawing


def _spoken(lane: FleetLane) -> str:
    bounds = "no interval"
    if lane.interval is not None:
        bounds = f"interval {seconds(lane.interval.low)} to {seconds(lane.interval.high)} s"
    return f"{lane.name}: median {seconds(lane.median)} s of {lane.hosts} hosts, {bounds}, {lane.n_failed} failed"


def _times_row(drawing: Drawing, axis: Axis, lane: FleetLane, top: float) -> None:
    y = _name(drawing, lane, top, 17)
    if lane.median is None:
        return
    low, high = (axis.x(value) for value in (lane.values[0], lane.values[-1]))
    drawing.line(low, y, high, y, "reach")
    if lane.hosts >= stats.LEAST_SAMPLES:
        left, right = (stats.quantile(lane.values, q) for q in (0.1, 0.9))
        drawing.box(axis.x(left), y - 9, axis.x(right), 18, "band", f"{seconds(left)} s to {seconds(right)} s")
    if lane.interval is not None:
        drawing.interval(axis.x(lane.interval.low), axis.x(lane.interval.high), y + 15)
    drawing.line(axis.x(lane.median), y - 12, axis.x(lane.median), y + 19, "median")


def _name(drawing: Drawing, lane: FleetLane, top: float, middle: float) -> float:
    """Draws a row's name and notes, and returns the middle of its plot."""
    y = top + drawing.layout.heading + middle
    name = f"{lane.name} (baseline)" if lane.is_baseline else lane.name
    value = "no good start" if lane.median is None else human_seconds(lane.median)
    drawing.row_name(name, top, y, value, strong=lane.is_baseline)
    note = f"{lane.n_failed} failed" if lane.n_failed else f"{lane.hosts} host{'' if lane.hosts == 1 else 's'}"
    css = "tick failed" if lane.n_failed else "tick"
    if drawing.layout.names_above:
        drawing.text(drawing.layout.width - 4, y + 21, note, css, "end")
    else:
        drawing.text(drawing.layout.right + 12, y + 21, note, css)
    return y


class _Shares(Axis):
    """How far from the median, from -reach to +reach; what lies beyond is at the edge."""

    def __init__(self, layout: Layout, reach: float) -> None:
        super().__init__(layout, [1.0], log=False)
        self.reach = reach

    def x(self, value: float) -> float:
        share = max(-self.reach, min(self.reach, value))
        return self.layout.left + self.layout.plot * (share / self.reach + 1) / 2

    def ticks(self) -> list[float]:
        raw = 2 * self.reach / max(3, int(self.layout.plot / 70))
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
        count = int(self.reach / step)
        return [step * number for number in range(-count, count + 1)]

    def draw(self, drawing: Drawing, top: float, bottom: float, label: str) -> None:
        for tick in self.ticks():
            drawing.line(self.x(tick), top, self.x(tick), bottom, "grid")
            label_of = f"{tick:+.0%}" if abs(tick) > 1e-9 else "0"
            drawing.text(self.x(tick), bottom + 16, label_of, "tick", "middle")
        middle = self.layout.left + self.layout.plot / 2
        drawing.text(middle, bottom + 34, label, "tick", "middle")
        drawing.height = bottom + 44


def deviations(chart_id: str, lanes: Sequence[FleetLane]) -> str:
    """One row per lane: every host, or columns of hosts where they are many, by how far it lies from the median."""
    shown = [lane for lane in lanes if lane.hosts > 1]
    if not shown:
        return ""
    return in_both_layouts(lambda layout: _draw_deviations(layout, chart_id, shown))


def _draw_deviations(layout: Layout, chart_id: str, lanes: Sequence[FleetLane]) -> Drawing:
    shares = {lane.name: _shares(lane) for lane in lanes}
    widest = max(abs(share) for group in shares.values() for share in group.values())
    axis = _Shares(layout, min(MOST_REACH, max(LEAST_REACH, widest * 1.06)))
    spoken = "; ".join(
        f"{lane.name}: from {min(group.values()):+.0%} to {max(group.values()):+.0%}, {len(lane.outliers)} outliers"
        for lane, group in zip(lanes, shares.values(), strict=True)
    )
    drawing = Drawing(layout, chart_id, "How far hosts lie from the fleet's median of a lane", spoken)
    row = BIN_ROW + layout.heading
    axis.draw(drawing, 0, row * len(lanes) + 4, "against the fleet's median of the lane")
    for number, lane in enumerate(lanes):
        _deviations_row(drawing, axis, lane, shares[lane.name], row * number)
    many = any(lane.hosts > MOST_DOTS for lane in lanes)
    keys = [
        (lambda x, y: drawing.box(x + 4, y, x + 12, 12, "column"), "hosts, counted")
        if many
        else (lambda x, y: drawing.dot(x + 8, y + 6, "sample", ""), "one host")
    ]
    if any(lane.outliers for lane in lanes):
        keys.append((lambda x, y: drawing.dot(x + 8, y + 6, "outlier", ""), "a host that stands out"))
    drawing.legend(keys)
    return drawing


def _shares(lane: FleetLane) -> dict[str, float]:
    assert lane.median is not None
    return {host: value / lane.median - 1 for host, value in lane.medians.items()}


def _deviations_row(drawing: Drawing, axis: _Shares, lane: FleetLane, shares: dict[str, float], top: float) -> None:
    y = _name(drawing, lane, top, 21)
    standing_out = {outlier.host for outlier in lane.outliers}
    if lane.hosts > MOST_DOTS:
        _columns(drawing, axis, list(shares.values()), y + 18)
    else:
        for number, (host, share) in enumerate(shares.items()):
            if host not in standing_out:
                drawing.dot(axis.x(share), y + (number % 5 - 2) * 4, "sample", f"{host}: {share:+.1%}")
    drawing.line(axis.x(0), y - 19, axis.x(0), y + 19, "median")
    for number, outlier in enumerate(lane.outliers[:MOST_OUTLIERS]):
        share = outlier.ratio - 1
        tooltip = f"{outlier.host}: {share:+.0%}"
        drawing.dot(axis.x(share), y + (number % 3 - 1) * 5, "outlier", tooltip)
    worst = lane.outliers[0] if lane.outliers else None
    if worst is not None and not drawing.layout.names_above:
        x = axis.x(worst.ratio - 1)
        label = f"{worst.host} {worst.ratio - 1:+.0%}"
        fits = x + 8 + CHARACTER * len(label) < drawing.layout.right
        drawing.text(x + 8 if fits else x - 8, y - 10, label, "tick", "start" if fits else "end")


def _columns(drawing: Drawing, axis: _Shares, shares: Sequence[float], bottom: float) -> None:
    counts, edges = np.histogram(np.clip(shares, -axis.reach, axis.reach), BINS, (-axis.reach, axis.reach))
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        if count:
            height = max(1.0, 36.0 * float(count) / float(counts.max()))
            tooltip = f"{count} hosts from {left:+.1%} to {right:+.1%}"
            drawing.box(axis.x(left) + 0.5, bottom - height, axis.x(right) - 0.5, height, "column", tooltip)
