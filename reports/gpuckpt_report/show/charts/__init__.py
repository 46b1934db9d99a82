# SPDX-License-Identifier: GPL-3.0-or-later
"""The report's charts as inline SVG: no script, no external resource, colours from the page's style sheet.

Every chart is drawn twice, wide and narrow; the style sheet shows the one that is legible. Each carries a title and a
description for screen readers, and the report prints the same figures as a table.
"""

from __future__ import annotations

from gpuckpt_report.show.charts.distribution import distribution
from gpuckpt_report.show.charts.drift import drift
from gpuckpt_report.show.charts.phases import phases, scale_groups
from gpuckpt_report.show.charts.sizes import sizes

__all__ = ["distribution", "drift", "phases", "scale_groups", "sizes"]
