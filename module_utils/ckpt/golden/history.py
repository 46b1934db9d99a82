# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of a golden checkpoint: its starts, and whether it was worth making."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ..parsing import FormatError, build
from ..system.files import read_json, write_json
from . import commit, start
from .commit import Golden
from .supervisor import Serving
from .wanted import Wanted

NAME = "history.json"
DAY_S = 86400


@dataclass(frozen=True)
class History:
    """Starts of a server that clients were served from; times are UTC (ISO 8601), `_s` are seconds until its first answer."""

    restored: int = 0
    last_restored_at: str | None = None
    last_restored_s: float | None = None
    cold: int = 0
    last_cold_at: str | None = None
    last_cold_why: list[str] | None = None


@dataclass(frozen=True)
class Worth:
    """What a restore saves, and what that cost.

    `saved_s` is what a restore is faster than the start from nothing by which the checkpoint was made, until the first
    token. `gpu_saved_s` is that for each GPU. `made_s` is what making took, with its trial. `break_even` is the number of
    restores after which more was saved than making took; None if a restore saves nothing.
    """

    saved_s: float
    gpu_saved_s: float
    made_s: float
    break_even: int | None
    saved_so_far_s: float


def note(wanted: Wanted, serving: Serving) -> None:
    """Adds a start. It is called when clients are served already: they do not wait for a disk."""
    before = load(wanted)
    if serving.mode == "restored":
        after = replace(
            before,
            restored=before.restored + 1,
            last_restored_at=serving.since,
            last_restored_s=serving.answered_s,
        )
    else:
        after = replace(before, cold=before.cold + 1, last_cold_at=serving.since, last_cold_why=serving.why)
    # a server of which nothing was ever committed has no folder
    if os.path.isdir(commit.home(wanted)):
        write_json(_path(wanted), asdict(after))


def load(wanted: Wanted) -> History:
    """The starts so far; none where they were not noted, or the note cannot be read."""
    with suppress(FormatError):
        raw = read_json(_path(wanted))
        return History() if raw is None else build(History, raw)
    return History()


def worth(golden: Golden, history: History) -> Worth | None:
    """What it saves; None for one that was made elsewhere, or before this was noted."""
    if golden.cold_s is None or golden.made_s is None:
        return None
    saved_s = golden.cold_s - golden.first_token_s
    return Worth(
        saved_s=round(saved_s, 3),
        gpu_saved_s=round(saved_s * len(golden.identity.get("gpus") or []), 3),
        made_s=golden.made_s,
        break_even=math.ceil(golden.made_s / saved_s) if saved_s > 0 else None,
        saved_so_far_s=round(saved_s * history.restored, 3),
    )


def overview(served: Sequence[Wanted]) -> list[dict[str, Any]]:
    """The golden checkpoints of a node, for programs and reports: where, how old and large, whether they fit, what they save."""
    return [_one(wanted) for wanted in served]


def _one(wanted: Wanted) -> dict[str, Any]:
    state, history = start.examine(wanted), load(wanted)
    golden = state.golden
    found = None if golden is None else worth(golden, history)
    return {
        "name": wanted.name,
        "folder": None if golden is None else golden.folder,
        "bytes": None if golden is None else golden.bytes,
        "made_at": None if golden is None else golden.made_at,
        "first_token_s": None if golden is None else golden.first_token_s,
        "cold_s": None if golden is None else golden.cold_s,
        "misfits": state.misfits,
        "history": asdict(history),
        "worth": None if found is None else asdict(found),
    }


def in_words(one: dict[str, Any], now: datetime | None = None) -> str:
    """One entry of the overview as a line to read."""
    if one["folder"] is None:
        return f"{one['name']}: {'; '.join(one['misfits'])}"
    history, found = one["history"], one["worth"]
    parts = [f"{one['bytes'] >> 20} MiB in {one['folder']}", f"{_age(one['made_at'], now)} old"]
    parts.append(f"does not fit ({'; '.join(one['misfits'])})" if one["misfits"] else "fits")
    if history["restored"]:
        last = f"the last in {history['last_restored_s']:.2f} s at {history['last_restored_at']}"
        parts.append(f"restored {history['restored']} times, {last}")
    else:
        parts.append(f"not served from yet, its trial took {one['first_token_s']:.2f} s")
    if history["cold"]:
        parts.append(f"started cold {history['cold']} times")
    if found is not None:
        after = "saves nothing" if found["break_even"] is None else f"pays after {found['break_even']} starts"
        parts.append(f"saves {found['saved_s']:.2f} s a start, took {found['made_s']:.1f} s to make, {after}")
    return f"{one['name']}: {', '.join(parts)}"


def _age(made_at: str, now: datetime | None) -> str:
    """How old, in the largest unit of which there is at least one."""
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(made_at)).total_seconds()
    for unit, size in (("days", DAY_S), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} seconds"


def _path(wanted: Wanted) -> str:
    return os.path.join(commit.home(wanted), NAME)
