# SPDX-License-Identifier: GPL-3.0-or-later
"""A table as data, and how Markdown and a terminal show it."""

from __future__ import annotations

from dataclasses import dataclass

from gpuckpt_report.text.markdown import Markdown, escaped


@dataclass(frozen=True)
class Table:
    """Headings and rows of text; the first column names the row."""

    headings: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table as GitHub renders it."""
        rule: list[str] = [Markdown("---"), *[Markdown("---:")] * (len(self.headings) - 1)]
        lines = [self.headings, rule, *self.rows]
        return "\n".join("| " + " | ".join(escaped(cell) for cell in line) + " |" for line in lines)

    def plain(self, width: int | None = None) -> str:
        """The table for a terminal, aligned by spaces.

        :param width: columns that it may take; names in the first column lose their beginnings for it
        """
        lines = [self.headings, *self.rows]
        if width is not None:
            others = sum(max(len(line[column]) for line in lines) + 2 for column in range(1, len(self.headings)))
            lines = [[_ending(line[0], max(12, width - others)), *line[1:]] for line in lines]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headings))]
        rendered = []
        for line in lines:
            cells = [line[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            rendered.append("  ".join(cells).rstrip())
        rendered.insert(1, "  ".join("─" * width for width in widths))
        return "\n".join(rendered)


def _ending(name: str, room: int) -> str:
    """As much of a name's end as there is room for: it is the end that tells names apart."""
    return name if len(name) <= room else "…" + name[1 - room :]
