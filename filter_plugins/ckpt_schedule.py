# Copyright: gpuckpt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order in which a benchmark visits its lanes; see ckpt_schedule.yml and ckpt_bill.yml."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from ansible.errors import AnsibleFilterError

# Records of these kinds are schedule entries; checkpoints and probes only prepare or accompany them.
SCHEDULED_KINDS = ("cold", "restore")

COUNT = re.compile(r"[0-9]{1,9}")
# far beyond what a node measures in a month; more is a slip of the keys, and would fill the controller's memory
MOST_ENTRIES = 100_000

Entry = dict[str, Any]


def ckpt_schedule(
    lanes: list[Any],
    iterations: int,
    seed: Any,
    warmup: int = 1,
    done: list[dict[str, Any]] | None = None,
) -> list[Entry]:
    """Returns what is still to be measured, interleaved, as ``{seq, lane, iteration, warmup}``.

    Every round holds each lane at most once, in an order drawn from the seed. So drift of the machine falls
    on all lanes alike. Warm-up rounds come first; iterations count from 1 in both parts.

    :param lanes: lane names, or dicts with ``name`` and optionally ``iterations``
    :param iterations: measured iterations of a lane that does not set its own
    :param seed: any string or number; the same seed and lanes give the same order
    :param warmup: warm-up rounds, each with every lane once
    :param done: records that exist; their entries are left out, so that a run can be continued
    :raises AnsibleFilterError: on bad arguments, all of them named in one message
    """
    counts = _iterations_by_lane(lanes, iterations, warmup)
    planned = _plan(counts, int(warmup), seed)
    places = _places_of(done or [])
    return _remaining(planned, places, {*places.values(), *_bill_numbers(done or [])})


def ckpt_bill(
    lanes: list[Any],
    rounds: int,
    moments_s: list[float],
    seed: Any,
    first_seq: int,
    first_probe_seq: int,
    done: list[dict[str, Any]] | None = None,
) -> list[Entry]:
    """Returns the rounds of the bill that are still to be measured: a schedule's entries, each with its ``moments``.

    Every round holds each lane once, whatever iterations it has in the schedule. Entries are marked as warm-up, so that
    their starts enter no figure; each moment is ``{at_s, seq}``, the number being that of its probe.

    :param lanes: lanes with ``name``, or their names
    :param rounds: number of rounds, 0 for none
    :param moments_s: seconds after a start at which its server is measured
    :param seed: as for ``ckpt_schedule``
    :param first_seq: number of the first start
    :param first_probe_seq: number of the first probe
    :param done: records that exist; an entry whose start is among them is left out
    :raises AnsibleFilterError: on bad arguments
    """
    if not _is_count(rounds, 0):
        raise AnsibleFilterError(f"ckpt_bill: rounds must be a whole number of at least 0, not {rounds!r:.80}")
    if int(rounds) == 0:
        return []
    names = [lane["name"] if isinstance(lane, dict) and "name" in lane else lane for lane in lanes]
    billed = [{**record, "warmup": False, "bill": None} for record in done or [] if record.get("bill")]
    entries = ckpt_schedule(names, rounds, f"{seed}/bill", 0, billed)
    try:
        moments = sorted(float(moment) for moment in moments_s)
    except (TypeError, ValueError):
        raise AnsibleFilterError(f"ckpt_bill: moments_s must be a list of seconds, not {moments_s!r:.80}") from None
    return [
        {
            **entry,
            "seq": int(first_seq) + position,
            "warmup": True,
            "moments": [
                {"at_s": moment, "seq": int(first_probe_seq) + position * len(moments) + number}
                for number, moment in enumerate(moments)
            ],
        }
        for position, entry in enumerate(entries)
    ]


def _iterations_by_lane(lanes: Any, iterations: Any, warmup: Any) -> dict[str, int]:
    errors = []
    if not _is_count(iterations, 1):
        errors.append(f"iterations must be a whole number of at least 1, not {iterations!r:.80}")
    if not _is_count(warmup, 0):
        errors.append(f"warmup must be a whole number of at least 0, not {warmup!r:.80}")
    if not isinstance(lanes, (list, tuple)) or not lanes:
        errors.append("lanes must be a list with at least one lane")
        lanes = []
    counts: dict[str, Any] = {}
    for position, lane in enumerate(lanes):
        entry = lane if isinstance(lane, dict) else {"name": lane}
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            errors.append(f"lanes[{position}] has no name")
            continue
        if name in counts:
            errors.append(f"lane {name!r} is named twice")
        if "iterations" in entry and not _is_count(entry["iterations"], 1):
            errors.append(
                f"iterations of lane {name!r} must be a whole number of at least 1, not {entry['iterations']!r:.80}"
            )
        counts[str(name)] = entry.get("iterations", iterations)
    if not errors and sum(int(count) + int(warmup) for count in counts.values()) > MOST_ENTRIES:
        errors.append(f"lanes, iterations and warmup make more than {MOST_ENTRIES} entries")
    if errors:
        raise AnsibleFilterError("ckpt_schedule: " + "; ".join(errors))
    return {name: int(count) for name, count in counts.items()}


def _is_count(value: Any, least: int) -> bool:
    """True for whole numbers and their spelling: ``-e gpuckpt_iterations=5`` arrives as a string."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return least <= value <= MOST_ENTRIES
    return isinstance(value, str) and bool(COUNT.fullmatch(value)) and int(value) >= least


def _plan(counts: dict[str, int], warmup: int, seed: Any) -> list[Entry]:
    names = list(counts)
    rounds = [[(name, number + 1, True) for name in names] for number in range(warmup)]
    measured = max(counts.values())
    for number in range(measured):
        rounds.append(
            [
                (name, _share(number + 1, count, measured), False)
                for name, count in counts.items()
                if _share(number + 1, count, measured) > _share(number, count, measured)
            ]
        )
    entries = [
        entry
        for number, members in enumerate(rounds)
        for entry in sorted(members, key=lambda member: _draw(seed, number, member[0]))
    ]
    return [
        {"seq": seq, "lane": lane, "iteration": iteration, "warmup": is_warmup}
        for seq, (lane, iteration, is_warmup) in enumerate(entries, start=1)
    ]


def _share(rounds_passed: int, count: int, rounds: int) -> int:
    """Iterations a lane should have had by now: one with fewer than the others is spread over the whole run."""
    return -(-rounds_passed * count // rounds)


def _draw(seed: Any, number: int, name: str) -> str:
    """A hash rather than random.shuffle: a lane's place hangs neither on Python's version nor on the other lanes."""
    return hashlib.sha256(f"{seed}/{number}/{name}".encode("utf-8", "surrogatepass")).hexdigest()


def _places_of(done: Any) -> dict[tuple[str, int, bool], int]:
    """Which entry each record that exists is of, and its number. Starts of the bill are not of the schedule."""
    try:
        scheduled = [
            record for record in done if record.get("kind", "restore") in SCHEDULED_KINDS and not record.get("bill")
        ]
        return {_key(record): int(record["seq"]) for record in scheduled}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise AnsibleFilterError(
            f"ckpt_schedule: a record that exists names no lane, iteration and seq ({error!s:.80})"
        ) from None


def _key(entry: dict[str, Any]) -> tuple[str, int, bool]:
    return str(entry["lane"]), int(entry["iteration"]), bool(entry.get("warmup", False))


def _bill_numbers(done: Any) -> set[int]:
    """Numbers that starts of the bill have: they are no entries of the schedule, and no entry may have them again."""
    return {int(record["seq"]) for record in done if record.get("bill") and record.get("kind") in SCHEDULED_KINDS}


def _remaining(planned: list[Entry], seq_of: dict[tuple[str, int, bool], int], used: set[int]) -> list[Entry]:
    """Failed records count as done: a failure belongs to the statistics and is not tried away."""
    remaining = [entry for entry in planned if _key(entry) not in seq_of]
    if any(entry["seq"] in used for entry in remaining):
        # Lanes or iterations changed since those records were made: number on after them.
        first = max(used) + 1
        return [{**entry, "seq": first + offset} for offset, entry in enumerate(remaining)]
    return remaining


class FilterModule:
    """Register the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filters by name."""
        return {"ckpt_schedule": ckpt_schedule, "ckpt_bill": ckpt_bill}
