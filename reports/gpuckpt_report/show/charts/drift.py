# SPDX-License-Identifier: GPL-3.0-or-later
"""Every sample in the order of the run, by how far it lies from its lane's median."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpuckpt_report.show.charts.canvas import Drawing, Layout, in_both_layouts

HEIGHT, MIDDLE = 150.0, 92.0
# Less than this fills the height of the chart only if nothing is further away.
LEAST_REACH = 0.02
Points = Sequence[tuple[str, Sequence[tuple[float, float]]]]


def drift(chart_id: str, lanes: Points) -> str:
    """Every sample of all lanes on one axis.

    :param lanes: kind of each lane, and its samples as (number in the run, log of seconds over the median)
    """
    if sum(len(group) for _, group in lanes) < 2:
        return ""
    return in_both_layouts(lambda layout: _draw(layout, chart_id, lanes))


def _draw(layout: Layout, chart_id: str, lanes: Points) -> Drawing:
    points = [point for _, group in lanes for point in group]
    first, last = (choose(place for place, _ in points) for choose in (min, max))
    reach = max(LEAST_REACH, *(abs(math.expm1(value)) for _, value in points))
    described = f"{len(points)} samples, at most {reach:.0%} from the median of their lane"
    drawing = Drawing(layout, chart_id, "Drift over the run", described)
    for share in (-reach, 0.0, reach):
        _level(drawing, share, MIDDLE - share / reach * HEIGHT / 2)
    for kind, group in lanes:
        for place, value in group:
            share = max(-reach, min(reach, math.expm1(value)))
            x = layout.left + layout.plot * (place - first) / max(1.0, last - first)
            css = "sample cold" if kind == "cold" else "sample"
            drawing.dot(x, MIDDLE - share / reach * HEIGHT / 2, css, f"entry {place:.0f}: {math.expm1(value):+.1%}")
    drawing.text(
        layout.left + layout.plot / 2, MIDDLE + HEIGHT / 2 + 24, "entries in the order of the run", "tick", "middle"
    )
    drawing.height = MIDDLE + HEIGHT / 2 + 34
    return drawing


def _level(drawing: Drawing, share: float, y: float) -> None:
    layout = drawing.layout
    drawing.line(layout.left, y, layout.right, y, "grid")
    text = f"{share:+.0%}" if share else "lane's median"
    if layout.names_above:
        drawing.text(layout.left, y - 5, text, "tick")
    else:
        drawing.text(layout.left - 14, y + 4, text, "tick", "end")
