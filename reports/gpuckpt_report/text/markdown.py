# SPDX-License-Identifier: GPL-3.0-or-later
"""Text that users wrote (names of lanes and hosts, descriptions, messages) as Markdown that shows it as it is."""

from __future__ import annotations

import re

SPECIAL = re.compile(r"[\\`*_{}\[\]<>|~$&]")
# What begins a heading, a list, a quotation or a rule when it begins a line.
OPENING = re.compile(r"^(?:([#+=-])|(\d+)([.)])(?=\s|$))")


class Markdown(str):
    """Text that is Markdown already, and stays as it is."""

    __slots__ = ()


def escaped(text: object) -> Markdown:
    """The text on one line, with everything in it that Markdown would take for its own made literal."""
    if isinstance(text, Markdown):
        return text
    line = SPECIAL.sub(r"\\\g<0>", " ".join(str(text).split()))
    return Markdown(OPENING.sub(lambda match: f"{match[2] or ''}\\{match[1] or match[3]}", line))
