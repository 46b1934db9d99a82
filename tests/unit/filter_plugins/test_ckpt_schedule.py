# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections import Counter

import pytest
from ansible.errors import AnsibleFilterError
from ckpt_schedule import ckpt_bill, ckpt_schedule

LANES = ["cold", "podman-stock", "podman-mapped", "process"]
ORDERS_WITHIN_ROUND = [[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)]


def key(entry):
    return entry["lane"], entry["iteration"], entry["warmup"]


def test_every_lane_once_per_round():
    schedule = ckpt_schedule(LANES, 5, seed=7, warmup=2)
    assert [entry["seq"] for entry in schedule] == list(range(1, 4 * 7 + 1))
    rounds = [schedule[start : start + 4] for start in range(0, len(schedule), 4)]
    for number, members in enumerate(rounds):
        assert sorted(entry["lane"] for entry in members) == sorted(LANES)
        assert {entry["warmup"] for entry in members} == {number < 2}
        assert {entry["iteration"] for entry in members} == {number + 1 if number < 2 else number - 1}


def test_order_depends_on_seed_only():
    first = ckpt_schedule(LANES, 8, seed="a")
    assert first == ckpt_schedule(LANES, 8, seed="a")
    assert first == ckpt_schedule(list(reversed(LANES)), 8, seed="a")
    assert first != ckpt_schedule(LANES, 8, seed="b")


def test_order_differs_between_rounds():
    schedule = ckpt_schedule(LANES, 10, seed=1, warmup=0)
    orders = {tuple(entry["lane"] for entry in schedule[start : start + 4]) for start in range(0, 40, 4)}
    assert len(orders) > 3


def test_lane_with_fewer_iterations_is_spread():
    schedule = ckpt_schedule([{"name": "cold", "iterations": 3}, "restore"], 9, seed=3, warmup=0)
    assert Counter(entry["lane"] for entry in schedule) == {"cold": 3, "restore": 9}
    colds = [entry["seq"] for entry in schedule if entry["lane"] == "cold"]
    restores_before = [sum(e["lane"] == "restore" and e["seq"] < seq for e in schedule) for seq in colds]
    # rounds 1, 4 and 7; within its round the cold start comes before or after the restore
    assert [count - round_ for count, round_ in zip(restores_before, (0, 3, 6))] in ORDERS_WITHIN_ROUND


def test_lane_may_have_more_iterations_than_the_rest():
    schedule = ckpt_schedule([{"name": "cold"}, {"name": "restore", "iterations": 10}], 2, seed=3, warmup=0)
    assert Counter(entry["lane"] for entry in schedule) == {"cold": 2, "restore": 10}
    assert [e["iteration"] for e in schedule if e["lane"] == "restore"] == list(range(1, 11))


@pytest.mark.parametrize("stop_after", [0, 1, 6, 23])
def test_resume_gives_the_rest_with_the_same_numbers(stop_after):
    whole = ckpt_schedule(LANES, 5, seed=7)
    done = [{**entry, "kind": "restore", "status": "failed"} for entry in whole[:stop_after]]
    assert ckpt_schedule(LANES, 5, seed=7, done=done) == whole[stop_after:]


def test_other_kinds_do_not_count_as_done():
    whole = ckpt_schedule(LANES, 2, seed=7)
    done = [{**whole[0], "kind": "checkpoint"}, {**whole[0], "kind": "probe"}]
    assert ckpt_schedule(LANES, 2, seed=7, done=done) == whole


def test_resume_with_more_iterations_keeps_what_was_measured():
    done = ckpt_schedule(LANES, 3, seed=7)
    rest = ckpt_schedule(LANES, 5, seed=7, done=done)
    assert rest == ckpt_schedule(LANES, 5, seed=7)[len(done) :]


def test_a_first_start_outside_the_schedule_is_no_entry_and_its_number_is_not_reused():
    whole = ckpt_schedule(LANES, 2, seed=7)
    start = {"kind": "cold", "lane": "podman-shared-0123abcd", "iteration": 1, "warmup": True, "seq": len(whole) + 1}
    assert ckpt_schedule(LANES, 2, seed=7, done=[start, *whole[:5]]) == whole[5:]
    rest = ckpt_schedule(LANES, 3, seed=7, done=[start, *whole])
    assert [entry["seq"] for entry in rest] == [start["seq"] + 1 + number for number in range(4)]


def test_resume_with_another_lane_never_reuses_a_number():
    done = ckpt_schedule(LANES, 3, seed=7)
    rest = ckpt_schedule([*LANES, "tar"], 3, seed=7, done=done)
    assert [key(entry)[0] for entry in rest] == ["tar"] * 4
    assert [entry["seq"] for entry in rest] == [17, 18, 19, 20]


def test_numbers_from_the_command_line_are_strings():
    assert ckpt_schedule(LANES, "3", seed=7, warmup="0") == ckpt_schedule(LANES, 3, seed=7, warmup=0)


def test_all_errors_at_once():
    with pytest.raises(AnsibleFilterError) as caught:
        ckpt_schedule(["a", "a", {"name": "b", "iterations": 0}, {}], 0, seed=1, warmup=-1)
    message = str(caught.value)
    for part in ("iterations must", "warmup must", "'a' is named twice", "lane 'b'", "lanes[3] has no name"):
        assert part in message


@pytest.mark.parametrize("lanes", [[], None, "cold"])
def test_lanes_must_be_a_list(lanes):
    with pytest.raises(AnsibleFilterError, match="at least one lane"):
        ckpt_schedule(lanes, 3, seed=1)


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 10**12},
        {"iterations": "9" * 5000},
        {"warmup": 10**9},
        {"iterations": "\u00b2"},
        {"done": [{}]},
        {"done": ["text"]},
        {"done": [{"lane": "a", "iteration": "x", "seq": 1}]},
    ],
)
def test_what_no_run_can_hold_is_refused(options):
    with pytest.raises(AnsibleFilterError, match="ckpt_schedule: "):
        ckpt_schedule(["a", "b"], **{"iterations": 2, "seed": 0, **options})


def test_the_bill_visits_every_lane_once_a_round_and_numbers_its_probes():
    lanes = [{"name": "cold", "iterations": 1}, {"name": "restore"}]
    entries = ckpt_bill(lanes, 2, [60, 0], 7, 100, 50)
    assert [entry["seq"] for entry in entries] == [100, 101, 102, 103]
    assert [entry["iteration"] for entry in entries] == [1, 1, 2, 2]
    assert all(entry["warmup"] for entry in entries)
    assert {entry["lane"] for entry in entries[:2]} == {entry["lane"] for entry in entries[2:]} == {"cold", "restore"}
    assert entries[0]["moments"] == [{"at_s": 0.0, "seq": 50}, {"at_s": 60.0, "seq": 51}]
    assert [moment["seq"] for entry in entries for moment in entry["moments"]] == list(range(50, 58))
    assert ckpt_bill(lanes, 0, [0], 7, 100, 50) == []


def test_a_bill_goes_on_after_its_last_start():
    whole = ckpt_bill(LANES, 3, [0, 60], 7, 100, 50)
    done = [{**entry, "kind": "restore", "bill": {"started": "restore"}, "status": "failed"} for entry in whole[:5]]
    rest = ckpt_bill(LANES, 3, [0, 60], 7, 200, 90, done)
    assert [key(entry) for entry in rest] == [key(entry) for entry in whole[5:]]
    assert rest[0]["moments"][0]["seq"] == 90


def test_starts_of_the_bill_are_no_entries_of_the_schedule():
    whole = ckpt_schedule(LANES, 2, seed=7, warmup=1)
    bill = [
        {**entry, "kind": "restore", "bill": {"started": "restore"}} for entry in ckpt_bill(LANES, 1, [0], 7, 100, 50)
    ]
    assert ckpt_schedule(LANES, 2, seed=7, warmup=1, done=bill) == whole


@pytest.mark.parametrize(("rounds", "moments"), [(-1, [0]), ("x", [0]), (1, "soon"), (1, [None]), (1, 5)])
def test_a_bill_that_cannot_be_is_refused(rounds, moments):
    with pytest.raises(AnsibleFilterError, match="ckpt_bill: "):
        ckpt_bill(LANES, rounds, moments, 7, 1, 1)


def test_more_iterations_after_a_bill_take_none_of_its_numbers():
    # two rounds of three lanes, the start of a server, and the bill of two rounds behind them
    done = [{**entry, "kind": "restore"} for entry in ckpt_schedule(["a", "b", "c"], 2, "s", 1)]
    done += [
        {**entry, "kind": "restore", "bill": {"started": "restore"}}
        for entry in ckpt_bill(["a", "b", "c"], 2, [0, 3], "s", 13, 53)
    ]
    continued = ckpt_schedule(["a", "b", "c"], 5, "s", 1, done)
    assert len(continued) == 9
    assert not {entry["seq"] for entry in continued} & {record["seq"] for record in done}
