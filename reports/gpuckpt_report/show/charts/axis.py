# SPDX-License-Identifier: GPL-3.0-or-later
"""From seconds or bytes to places in a chart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from gpuckpt_report.show.charts.canvas import CHARACTER, Drawing, Layout

# Beyond this ratio of the largest to the smallest value, a linear axis would press the small ones into one pixel.
LOG_FROM_RATIO = 15
# Ticks that are nearer to each other than this cannot be read.
LEAST_GAP = 12.0
TICK_WIDTH = 70


class Axis:
    """Values to places, with ticks at round values."""

    def __init__(self, layout: Layout, values: Sequence[float], log: bool | None = None) -> None:
        low, self.high = min(values), max(values)
        self.layout = layout
        self.log = low > 0 and self.high / low > LOG_FROM_RATIO if log is None else log
        if self.log:
            self.low, self.high = low / 1.3, self.high * 1.15
        else:
            self.low, self.high = 0.0, (self.high or 1.0) * 1.04

    def x(self, value: float) -> float:
        """The horizontal place of a value."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = value / self.high
        return self.layout.left + self.layout.plot * min(share, 1.0)

    def ticks(self) -> list[float]:
        """Round values within the axis, as many as have room."""
        if not self.log:
            return self._linear_ticks()
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1, 2, 5), (1, 3), (1,)):
            ticks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
            ticks = [tick for tick in ticks if self.low <= tick <= self.high]
            if self._have_room(ticks):
                break
        return ticks

    def _linear_ticks(self) -> list[float]:
        raw = self.high / max(3, int(self.layout.plot / TICK_WIDTH))
        power = 10 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
        return [step * number for number in range(int(self.high / step) + 1)]

    def _have_room(self, ticks: Sequence[float]) -> bool:
        places = [(self.x(tick), CHARACTER * len(f"{tick:g}") / 2) for tick in ticks]
        return all(x - half > before + other + LEAST_GAP for (before, other), (x, half) in itertools.pairwise(places))

    def draw(self, drawing: Drawing, top: float, bottom: float, label: str) -> None:
        """Vertical lines at the ticks, their values, and the axis' name below."""
        for tick in self.ticks():
            x = self.x(tick)
            drawing.line(x, top, x, bottom, "grid")
            drawing.text(x, bottom + 16, f"{tick:g}", "tick", "middle")
        if self.log:
            label += " · logarithmic scale"
        drawing.text(self.layout.left + self.layout.plot / 2, bottom + 34, label, "tick", "middle")
        drawing.height = bottom + 44
