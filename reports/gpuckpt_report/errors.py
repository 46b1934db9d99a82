# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception that users see."""

from __future__ import annotations


class ReportError(Exception):
    """Bad input: the message names the cause and the fix, and is printed without a traceback."""
