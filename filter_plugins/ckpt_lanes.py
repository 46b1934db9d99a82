# Copyright: gpuckpt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lanes of a benchmark, checked in one go and completed with their defaults; see ckpt_lanes.yml."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

try:
    from gpuckpt_report.records import schema, vocabulary
except ImportError as error:  # pragma: no cover - only outside the project's environment
    raise ImportError(
        f"{error}; run ansible-playbook from the project's environment, which `make setup` makes"
    ) from error

Lane = dict[str, Any]


def ckpt_lanes(lanes: Any, lane_filter: str = "") -> list[Lane]:
    """Returns the lanes whose name matches ``lane_filter``, with every default filled in and one baseline.

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


def ckpt_restore_options(lane: Lane) -> dict[str, Any]:
    """Returns what a lane says of its restore, as options of the module ``ckpt_restore``.

    :param lane: a lane as returned by ``ckpt_lanes``
    """
    return {key: lane[key] for key in vocabulary.RESTORE_KEYS}


def _lane_errors(lane: Any, position: int) -> list[str]:
    if not isinstance(lane, dict):
        return [f"lanes[{position}] must be a dictionary, not {lane!r}"]
    where = f"lane {lane['name']!r}" if isinstance(lane.get("name"), str) else f"lanes[{position}]"
    return [f"{where}: {error}" for error in schema.lane_errors(_plain(lane))]


def _plain(value: Any) -> Any:
    """The same in Python's own containers. Ansible's fill themselves as they are read, which pydantic does past them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _list_errors(lanes: list[Lane]) -> list[str]:
    named = [lane for lane in lanes if isinstance(lane.get("name"), str)]
    return vocabulary.set_problems((lane["name"], lane.get("baseline") is True) for lane in named)


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
    """The lane with its defaults. A key that has none stays away, and one that is null has its default."""
    given = {key: value for key, value in lane.items() if value is not None}
    complete = schema.Lane.model_validate(_plain(given)).model_dump(exclude_none=True)
    return {**complete, **given, "checkpoint": complete["checkpoint"]}


def _with_baseline(lanes: list[Lane]) -> list[Lane]:
    """Without a chosen baseline (or with it filtered away), compare with the first restore lane."""
    if not any(lane["baseline"] for lane in lanes):
        chosen = next((lane for lane in lanes if lane["start"] == "restore"), lanes[0])
        chosen["baseline"] = True
    return lanes


class FilterModule:
    """Register the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filters by name."""
        return {"ckpt_lanes": ckpt_lanes, "ckpt_restore_options": ckpt_restore_options}
