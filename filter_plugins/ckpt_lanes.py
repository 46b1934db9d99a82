# Copyright: gpuckpt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lanes of a benchmark, checked in one go and completed with their defaults; see ckpt_lanes.yml."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

Lane = dict[str, Any]

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
NAME_LENGTH = 64
SWITCH = re.compile(r"CRIU_[A-Z0-9_]+")

STARTS = ("cold", "restore")
RUNTIMES = ("podman", "process")
BUILDS = ("stock", "patched", "distro", "current")
SLIMMING = ("none", "sleep1", "sleep2", "kv-drop", "staged")
SOURCES = ("store", "disk", "tar", "tar.gz", "tar.zst")
PAGE_CACHE = ("warm", "dropped")

DEFAULTS: Lane = {
    "build": "current",
    "switches": {},
    "slimming": "none",
    "source": "store",
    "flags": [],
    "page_cache": "warm",
    "resident_pool": False,
    "prefetch": False,
    "checkpoint": {},
    "server": {},
    "baseline": False,
    "description": "",
}
CHECKPOINT_DEFAULTS: dict[str, Any] = {"build": "stock", "switches": {}}
CHOICES = {
    "start": STARTS,
    "runtime": RUNTIMES,
    "build": BUILDS,
    "slimming": SLIMMING,
    "source": SOURCES,
    "page_cache": PAGE_CACHE,
}
REQUIRED = ("name", "start", "runtime")
KEYS = (*REQUIRED, *DEFAULTS, "iterations")
# A cold start restores nothing: these keys would be silently without effect.
RESTORE_ONLY = (
    "slimming",
    "source",
    "flags",
    "page_cache",
    "resident_pool",
    "prefetch",
    "checkpoint",
    "build",
    "switches",
)


def ckpt_lanes(lanes: Any, lane_filter: str = "") -> list[Lane]:
    """Return the lanes whose name matches ``lane_filter``, with every default filled in and one baseline.

    :param lanes: lanes as the inventory has them
    :param lane_filter: regular expression searched in the names; empty keeps every lane
    :raises AnsibleFilterError: naming every error of every lane
    """
    if not isinstance(lanes, (list, tuple)) or not lanes:
        raise AnsibleFilterError("ckpt_lanes: gpuckpt_lanes must be a list with at least one lane")
    errors: list[str] = []
    for position, lane in enumerate(lanes):
        errors += _lane_errors(lane, position)
    errors += _list_errors([lane for lane in lanes if isinstance(lane, dict)])
    if errors:
        raise AnsibleFilterError(f"ckpt_lanes: {len(errors)} error(s) in the lanes: " + "; ".join(errors))
    return _with_baseline([_complete(lane) for lane in _select(lanes, lane_filter)])


def _lane_errors(lane: Any, position: int) -> list[str]:
    if not isinstance(lane, dict):
        return [f"lanes[{position}] must be a dictionary, not {lane!r}"]
    where = f"lane {lane['name']!r}" if isinstance(lane.get("name"), str) else f"lanes[{position}]"
    errors = _key_errors(lane) + _choice_errors(lane) + _value_errors(lane) + _combination_errors(lane)
    return [f"{where}: {error}" for error in errors]


def _key_errors(lane: Lane) -> list[str]:
    errors = [f"{key} is missing" for key in REQUIRED if key not in lane]
    for key in lane:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key)[:NAME_LENGTH], KEYS, n=1)
            errors.append(
                f"unknown key {key!r}" + (f", did you mean {close[0]!r}?" if close else f" (known: {', '.join(KEYS)})")
            )
    name = lane.get("name", "")
    if "name" in lane and not (isinstance(name, str) and NAME.fullmatch(name)):
        errors.append(f"name must be lower-case words joined by '-', not {name!r}")
    elif len(name) > NAME_LENGTH:
        errors.append(f"name has {len(name)} characters, and {NAME_LENGTH} are allowed")
    return errors


def _choice_errors(lane: Lane) -> list[str]:
    return [
        f"{key} must be one of {', '.join(choices)}, not {lane[key]!r}"
        for key, choices in CHOICES.items()
        if key in lane and lane[key] not in choices
    ]


def _value_errors(lane: Lane) -> list[str]:
    errors = _switch_errors("switches", lane.get("switches", {}))
    flags = lane.get("flags", [])
    if not isinstance(flags, list) or not all(isinstance(flag, str) and flag for flag in flags):
        errors.append(f"flags must be a list of strings, not {flags!r}")
    if not isinstance(lane.get("server", {}), dict):
        errors.append("server must be a dictionary of overrides of the server's specification")
    errors += [
        f"{key} must be true or false, not {lane[key]!r}"
        for key in ("resident_pool", "prefetch", "baseline")
        if not isinstance(lane.get(key, False), bool)
    ]
    if not isinstance(lane.get("description", ""), str):
        errors.append("description must be one line of text")
    count = lane.get("iterations", 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        errors.append(f"iterations must be a whole number of at least 1, not {count!r}")
    return errors + _checkpoint_errors(lane.get("checkpoint", {}))


def _checkpoint_errors(checkpoint: Any) -> list[str]:
    if not isinstance(checkpoint, dict):
        return ["checkpoint must be a dictionary with build and switches"]
    errors = [
        f"checkpoint has an unknown key {key!r} (known: build, switches)"
        for key in checkpoint
        if key not in CHECKPOINT_DEFAULTS
    ]
    if checkpoint.get("build", "stock") not in BUILDS:
        errors.append(f"checkpoint.build must be one of {', '.join(BUILDS)}, not {checkpoint['build']!r}")
    return errors + _switch_errors("checkpoint.switches", checkpoint.get("switches", {}))


def _switch_errors(where: str, switches: Any) -> list[str]:
    if not isinstance(switches, dict):
        return [f"{where} must be a dictionary of CRIU_* switches"]
    return [
        f"{where}.{key} must be a CRIU_* name with a plain value"
        for key, value in switches.items()
        if not SWITCH.fullmatch(str(key)) or not isinstance(value, (str, int, float))
    ]


def _combination_errors(lane: Lane) -> list[str]:
    errors = []
    source = lane.get("source", "store")
    if lane.get("start") == "cold":
        useless = [key for key in RESTORE_ONLY if key in lane]
        if useless:
            errors.append(f"a cold start has no use for {', '.join(useless)}")
    if lane.get("runtime") == "process" and str(source).startswith("tar"):
        errors.append(f"source {source} is an archive of podman's; the process runtime knows store and disk")
    if lane.get("page_cache") == "dropped" and source != "disk":
        errors.append("page_cache: dropped needs source: disk, since a tmpfs has no page cache to drop")
    if lane.get("resident_pool") is True and lane.get("build") != "patched":
        errors.append("resident_pool: true needs build: patched, since the other builds are measured as they are")
    if lane.get("prefetch") is True and lane.get("slimming") != "staged":
        errors.append("prefetch: true needs slimming: staged, whose weights lie in a file of their own")
    return errors


def _list_errors(lanes: list[Lane]) -> list[str]:
    names = [lane.get("name") for lane in lanes]
    twice = sorted({str(name) for name in names if name is not None and names.count(name) > 1})
    errors = [f"lane {name!r} is named twice" for name in twice]
    baselines = [str(lane.get("name")) for lane in lanes if lane.get("baseline") is True]
    if len(baselines) > 1:
        errors.append(f"only one lane can be the baseline, not {', '.join(baselines)}")
    return errors


def _select(lanes: Sequence[Lane], lane_filter: str) -> list[Lane]:
    try:
        pattern = re.compile(lane_filter)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise AnsibleFilterError(
            f"ckpt_lanes: gpuckpt_lane_filter {lane_filter!r:.200} is no regular expression: {error}"
        ) from error
    kept = [lane for lane in lanes if pattern.search(lane["name"])]
    if not kept:
        known = ", ".join(lane["name"] for lane in lanes)
        raise AnsibleFilterError(f"ckpt_lanes: gpuckpt_lane_filter {lane_filter!r} matches no lane; there are: {known}")
    return kept


def _complete(lane: Lane) -> Lane:
    return {**DEFAULTS, **lane, "checkpoint": {**CHECKPOINT_DEFAULTS, **lane.get("checkpoint", {})}}


def _with_baseline(lanes: list[Lane]) -> list[Lane]:
    """Without a chosen baseline (or with it filtered away), compare with the first restore lane."""
    if not any(lane["baseline"] for lane in lanes):
        chosen = next((lane for lane in lanes if lane["start"] == "restore"), lanes[0])
        chosen["baseline"] = True
    return lanes


class FilterModule:
    """Register the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"ckpt_lanes": ckpt_lanes}
