# Copyright: gpuckpt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Variables whose names look like one of the project's and are not; see ckpt_misspelt.yml."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parent.parent
SHARED = re.compile(r"\bgpuckpt_[a-z0-9_]+\b")
SET = re.compile(r"^(?: *register: *| *)([a-z_][a-z0-9_]*)(?::|$)", re.MULTILINE)
# Alike enough for a slip of the keys or a forgotten ending, and not for a name of the user's own making.
ALIKE = 0.9


def ckpt_misspelt(names: Iterable[str]) -> list[str]:
    """Returns a sentence for each name that no role and no play knows and that is nearly one which they know."""
    known = _known()
    found = []
    for name in sorted(set(names) - known - _set_by_roles()):
        close = difflib.get_close_matches(name, known, n=1, cutoff=ALIKE)
        if close:
            found.append(f"{name} is a variable of no role and no play: is {close[0]} meant?")
    return found


@cache
def _known() -> frozenset[str]:
    names: set[str] = set()
    for specs in PROJECT.glob("roles/*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(specs.read_text(encoding="utf-8"))["argument_specs"].values():
            names |= set(entry.get("options", {}))
    for pattern in ("roles/*/defaults/main.yml", "playbooks/*.yml"):
        for page in PROJECT.glob(pattern):
            names |= set(SHARED.findall(page.read_text(encoding="utf-8")))
    return frozenset(names)


@cache
def _set_by_roles() -> frozenset[str]:
    """What roles set or register for the plays after them: nobody's slip, and nothing to suggest."""
    pages = [page for pattern in ("roles/*/vars/*.yml", "roles/*/tasks/*.yml") for page in PROJECT.glob(pattern)]
    return frozenset(name for page in pages for name in SET.findall(page.read_text(encoding="utf-8")))


class FilterModule:
    """Register the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filters by name."""
        return {"ckpt_misspelt": ckpt_misspelt}
