# SPDX-License-Identifier: GPL-3.0-or-later
"""How large checkpoints are, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence

from gpuckpt_report.analysis.run import CheckpointSize
from gpuckpt_report.show.charts.axis import Axis
from gpuckpt_report.show.charts.canvas import Drawing, Layout, in_both_layouts
from gpuckpt_report.show.contents import PARTS, contents
from gpuckpt_report.text.units import human_bytes

BINARY_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
ROW, BAR = 36.0, 20.0


def sizes(chart_id: str, checkpoints: Sequence[CheckpointSize]) -> str:
    """One stacked bar per checkpoint, by what it holds."""
    if not any(checkpoint.total for checkpoint in checkpoints):
        return ""
    return in_both_layouts(lambda layout: _draw(layout, chart_id, checkpoints))


def _draw(layout: Layout, chart_id: str, checkpoints: Sequence[CheckpointSize]) -> Drawing:
    largest = max(sum(checkpoint.images.values()) for checkpoint in checkpoints)
    unit, unit_name = next((size, name) for size, name in BINARY_UNITS if largest >= size or size == 1)
    axis = Axis(layout, [largest / unit], log=False)
    described = "; ".join(f"{checkpoint.lane}: {human_bytes(checkpoint.total)}" for checkpoint in checkpoints)
    drawing = Drawing(layout, chart_id, "Size of each checkpoint, and what it holds", described)
    row = ROW + layout.heading
    axis.draw(drawing, 0, row * len(checkpoints) + 4, f"image files, {unit_name}")
    for number, checkpoint in enumerate(checkpoints):
        _row(drawing, axis, checkpoint, row * number, unit)
    shown = {kind for checkpoint in checkpoints for kind, size in contents(checkpoint).items() if size}
    drawing.legend([(drawing.class_key(kind), title) for kind, title in PARTS.items() if kind in shown])
    return drawing


def _row(drawing: Drawing, axis: Axis, checkpoint: CheckpointSize, top: float, unit: int) -> None:
    y = top + drawing.layout.heading + 6
    drawing.row_name(checkpoint.lane, top, y + BAR / 2, human_bytes(checkpoint.total))
    start = 0.0
    for kind, size in contents(checkpoint).items():
        if size:
            tooltip = f"{PARTS[kind]}: {human_bytes(size)}"
            drawing.bar(axis.x(start / unit), y, axis.x((start + size) / unit), BAR, kind, tooltip)
            start += size
