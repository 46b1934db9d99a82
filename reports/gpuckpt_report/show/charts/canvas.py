# SPDX-License-Identifier: GPL-3.0-or-later
"""SVG elements and the two layouts that charts are drawn in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

from gpuckpt_report.show.phase_classes import PhaseClass

# Widths of a character at the sizes of report.css, of fonts that run wide.
CHARACTER, BOLD_CHARACTER = 7.2, 8.2
# A narrower box shows no pattern, and is drawn faster without one.
LEAST_PATTERNED = 5.0
# Classes are told apart by a pattern, too, for those who see their colours alike.
PATTERNS = {
    "start": '<path d="M0 3h6" stroke-width="1.6"/>',
    "images": '<path d="M3 0v6" stroke-width="1.6"/>',
    "gpu": '<path d="M-1 7L7 -1M-1 1L1 -1M5 7L7 5" stroke-width="1.4"/>',
    "weights": '<path d="M-1 -1L7 7M-1 5L1 7M5 -1L7 1" stroke-width="1.4"/>',
    "token": '<circle cx="3" cy="3" r="1.3" class="dot"/>',
    "other": '<path d="M0 3h6M3 0v6" stroke-width="1"/>',
}


@dataclass(frozen=True)
class Layout:
    """Measures of a chart in its own units: the plot lies between ``left`` and ``right`` of ``width``."""

    name: str
    width: float
    left: float
    right: float
    names_above: bool

    @property
    def plot(self) -> float:
        """Width of the plot."""
        return self.right - self.left

    @property
    def heading(self) -> float:
        """Height of the line above a row that holds the row's name, where it does."""
        return 20 if self.names_above else 0


WIDE = Layout("wide", 900, 250, 770, names_above=False)
# As wide as a telephone's screen without margins, so that its units are about pixels.
NARROW = Layout("narrow", 340, 8, 326, names_above=True)
LAYOUTS = (WIDE, NARROW)


class Drawing:
    """SVG elements, collected top down."""

    def __init__(self, layout: Layout, chart_id: str, title: str, description: str) -> None:
        self.layout = layout
        self.chart_id = f"{chart_id}-{layout.name}"
        self.title = title
        self.description = description
        self.height = 0.0
        self.elements: list[str] = []
        self.patterned: dict[str, None] = {}

    def text(self, x: float, y: float, content: str, css: str = "", anchor: str = "start") -> None:
        """A line of text with its baseline at y."""
        place = f'x="{x:.1f}" y="{y:.1f}"' + (f' text-anchor="{anchor}"' if anchor != "start" else "")
        self.elements.append(f'<text {place} class="{css}">{escape(content)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        """A straight line."""
        self.elements.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>')

    def box(self, x1: float, y: float, x2: float, height: float, css: str, tooltip: str = "") -> None:
        """A filled box from x1 to x2, at least a hair wide, so that nothing that exists is invisible."""
        width = max(x2 - x1, 0.75)
        place = f'x="{x1:.2f}" y="{y:.1f}" width="{width:.2f}" height="{height:.1f}"'
        self.elements.append(f'<rect {place} class="{css}">{_tooltip(tooltip)}</rect>')

    def bar(self, x1: float, y: float, x2: float, height: float, kind: PhaseClass, tooltip: str = "") -> None:
        """A box in the colour and pattern of a class."""
        self.box(x1, y, x2, height, f"k-{kind.key}", tooltip)
        if kind.key in PATTERNS and x2 - x1 >= LEAST_PATTERNED:
            self.patterned[kind.key] = None
            place = f'x="{x1:.2f}" y="{y:.1f}" width="{x2 - x1:.2f}" height="{height:.1f}"'
            self.elements.append(f'<rect {place} fill="url(#{self.chart_id}-{kind.key})" class="pattern"/>')

    def dot(self, x: float, y: float, css: str, tooltip: str) -> None:
        """A sample."""
        self.elements.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.6" class="{css}">{_tooltip(tooltip)}</circle>')

    def interval(self, low: float, high: float, y: float) -> None:
        """An interval from low to high, with a cap at each end."""
        self.line(low, y, high, y, "interval")
        for x in (low, high):
            self.line(x, y - 4, x, y + 4, "cap")

    def row_name(self, name: str, top: float, middle: float, value: str, *, strong: bool = False) -> None:
        """Name and value of a row: at both sides of the plot, or in a line of their own above it.

        :param top: where the row begins
        :param middle: where the middle of its plot lies
        """
        css = "label strong" if strong else "label"
        layout = self.layout
        if layout.names_above:
            room = layout.width - BOLD_CHARACTER * len(value) - 16
            self.text(layout.left, top + 13, fitting(name, room, strong=strong), css)
            self.text(layout.width - 4, top + 13, value, "value", "end")
        else:
            room = layout.left - 16
            self.text(layout.left - 14, middle + 4, fitting(name, room, strong=strong), css, "end")
            self.text(layout.right + 12, middle + 4, value, "value")

    def row_note(self, note: str, y: float, css: str = "tick") -> None:
        """A remark on a row below its value, where that stands next to the plot."""
        self.text(self.layout.right + 12, y, note, css)

    def legend(self, entries: Iterable[tuple[Callable[[float, float], None], str]]) -> None:
        """Keys in as many rows as they need, below what was drawn.

        :param entries: what draws a key of 16 by 12 at (left, top), and its name
        """
        x, y = self.layout.left if self.layout.names_above else 0.0, self.height + 14
        start = x
        for draw, name in entries:
            width = 42 + CHARACTER * len(name)
            if x > start and x + width - 14 > self.layout.width:
                x, y = start, y + 20
            draw(x, y - 10)
            self.text(x + 22, y, name, "key")
            x += width
        self.height = y + 10

    def class_legend(self, classes: Iterable[PhaseClass]) -> None:
        """The keys of classes."""
        self.legend([(self.class_key(kind), kind.title) for kind in classes])

    def class_key(self, kind: PhaseClass) -> Callable[[float, float], None]:
        """The key of one class."""
        return lambda x, y: self.bar(x, y, x + 16, 12, kind)

    def markup(self) -> str:
        """The whole <svg> element."""
        title, description = f"{self.chart_id}-title", f"{self.chart_id}-desc"
        size = f'viewBox="0 0 {self.layout.width:.0f} {self.height:.0f}"'
        label = f'role="img" aria-labelledby="{title} {description}"'
        return "\n".join(
            [
                f'<svg class="chart {self.layout.name}" {size} {label}>',
                f'<title id="{title}">{escape(self.title)}</title>',
                f'<desc id="{description}">{escape(self.description)}</desc>',
                *self._definitions(),
                *self.elements,
                "</svg>",
            ]
        )

    def _definitions(self) -> list[str]:
        patterns = [
            f'<pattern id="{self.chart_id}-{key}" width="6" height="6" patternUnits="userSpaceOnUse">'
            f"{PATTERNS[key]}</pattern>"
            for key in self.patterned
        ]
        return ["<defs>", *patterns, "</defs>"] if patterns else []


def in_both_layouts(draw: Callable[[Layout], Drawing]) -> str:
    """The markup of a chart in every layout; style sheets show one of them."""
    return "\n".join(draw(layout).markup() for layout in LAYOUTS)


def fitting(name: str, room: float, *, strong: bool = False) -> str:
    """The name, or as much of its end as there is room for: it is the end that tells names apart.

    :param room: width in units of the chart
    """
    count = max(4, int(room / (BOLD_CHARACTER if strong else CHARACTER)))
    return name if len(name) <= count else "…" + name[1 - count :]


def _tooltip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
