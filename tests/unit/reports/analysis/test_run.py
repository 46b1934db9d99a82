# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
import synthetic

from gpuckpt_report.analysis.advisor import advise
from gpuckpt_report.analysis.run import CONTEXT_COST, COPY_CEILING
from gpuckpt_report.errors import ReportError
from gpuckpt_report.records.schema import Lane
from gpuckpt_report.show import tables


def rounds(lane, values, first_seq=1, **changes):
    return [
        synthetic.record(first_seq + number, lane, number + 1, value, **changes) for number, value in enumerate(values)
    ]


def lane_of(run, name):
    return next(lane for lane in run.hosts[0].lanes if lane.name == name)


def test_figures_of_a_lane(fake_run, analyse):
    records = rounds("podman-stock", [4.0, 8.0, 6.0, 10.0, 6.0, 8.0])
    records += rounds("podman-mapped", [2.0, 4.0, 3.0, 5.0, 3.0, 4.0], 10)
    result = analyse(fake_run(records))
    stock, mapped = lane_of(result, "podman-stock"), lane_of(result, "podman-mapped")
    assert (stock.median, stock.p90, stock.n, stock.is_baseline) == (7.0, pytest.approx(9.0), 6, True)
    assert mapped.speedup.paired
    assert mapped.speedup.value == 2.0
    assert (mapped.speedup.interval.low, mapped.speedup.interval.high) == pytest.approx((2.0, 2.0))
    assert stock.speedup is None
    assert stock.moments["T3"] == pytest.approx(0.9 * 7)


def test_failed_and_warm_up_records_enter_no_figure_but_failures_are_counted(fake_run, analyse):
    records = [
        *rounds("podman-stock", [4.0, 6.0]),
        synthetic.failed(20, "podman-stock", 3),
        synthetic.failed(21, "podman-stock", 4, reason="timeout", message=None),
        synthetic.record(22, "podman-stock", 1, 500.0, warmup=True),
        synthetic.failed(23, "podman-stock", 2, warmup=True),
    ]
    result = analyse(fake_run(records))
    stock = lane_of(result, "podman-stock")
    assert (stock.median, stock.n, stock.n_failed) == (5.0, 2, 2)
    assert stock.failures == {"canary_differs": 1, "timeout": 1}
    assert [record["seq"] for record in result.hosts[0].failures] == [20, 21, 23]


def test_a_lane_without_a_success_has_no_figures(fake_run, analyse):
    result = analyse(fake_run([synthetic.failed(1, "podman-stock", 1), *rounds("podman-mapped", [1.0, 2.0, 3.0], 2)]))
    assert lane_of(result, "podman-stock").median is None
    assert lane_of(result, "podman-mapped").speedup is None


def test_lanes_with_other_rounds_are_compared_as_independent(fake_run, analyse):
    records = rounds("podman-stock", [4.0, 4.1, 4.2, 4.3]) + rounds("podman-mapped", [2.0, 2.1, 2.2], 10)
    assert not lane_of(analyse(fake_run(records)), "podman-mapped").speedup.paired


def test_phases_shown_are_those_of_the_record_nearest_the_median(fake_run, analyse):
    stock = lane_of(analyse(fake_run(rounds("podman-stock", [4.0, 5.0, 9.0]))), "podman-stock")
    assert stock.phases_seq == 2
    criu = next(phase for phase in stock.phases if phase.name == "criu")
    assert (criu.start, criu.end) == (pytest.approx(0.1), pytest.approx(3.5))
    assert criu.median == pytest.approx(3.4)


def test_floor_is_context_plus_copy_of_the_lanes_gpu_bytes(fake_run, analyse):
    floor = {CONTEXT_COST: {"value": 0.5, "unit": "s"}, COPY_CEILING: {"value": 2.0 * 2**30, "unit": "B/s"}}
    measured = synthetic.record(9, "cold", 0, 1.0, kind="floor", phases={}, t={"T0": 0.0}, floor=floor)
    records = [measured, *rounds("podman-stock", [9.0] * 3), *rounds("cold", [50.0] * 3, 20)]
    result = analyse(fake_run(records))
    assert lane_of(result, "podman-stock").floor == pytest.approx(0.5 + 12 / 2)
    assert lane_of(result, "cold").floor is None


def test_tokens_after_the_first_are_compared_with_a_cold_start(fake_run, analyse):
    def told(first_seq, lane, gap):
        tokens = {"tokens": list("abcdefghijk"), "equal": None if lane == "cold" else True}
        moments = {"T0": 0.0, "T1": 1.0, "T4": 2.0, "T5": 2.0 + 10 * gap}
        return rounds(lane, [2.0] * 6, first_seq, t=moments, canary=tokens)

    (host,) = analyse(fake_run(told(1, "cold", 0.010) + told(20, "podman-mapped", 0.012))).hosts
    cold, mapped = tables.bill(host).rows
    assert cold == ["cold", "2.00", "2.10", "10.0", "–"]
    assert mapped == ["podman-mapped", "2.00", "2.12", "12.0", "1.20× (1.20× … 1.20×)"]
    assert tables.bill(analyse(fake_run(rounds("cold", [2.0]), name="b")).hosts[0]) is None


def test_a_first_start_is_shown_and_enters_no_figure(fake_run, analyse):
    records = [
        *rounds("cold", [50.0, 51.0, 52.0]),
        synthetic.record(9, "cold", 1, 70.0, warmup=True),
        synthetic.first_start(10, 93.0),
        synthetic.first_start(11, 60.0, status="failed", reason="server_died"),
    ]
    result = analyse(fake_run(records))
    (host,) = result.hosts
    assert [(start.server, start.first_token_s) for start in host.first_starts] == [("podman-shared-0123abcd", 93.0)]
    assert [lane.name for lane in host.lanes] == ["cold"]
    assert host.lanes[0].median == 51.0
    assert [record["seq"] for record in host.failures] == [11]


def test_a_floor_that_failed_is_a_failure_and_no_floor(fake_run, analyse):
    broken = synthetic.failed(9, "node", 0, kind="floor", reason="timeout", checks={})
    (host,) = analyse(fake_run([broken, *rounds("podman-stock", [9.0] * 3)])).hosts
    assert (host.floors, host.lanes[0].floor) == ({}, None)
    assert [record["kind"] for record in host.failures] == ["floor"]


def test_another_metric_moves_every_figure(fake_run, analyse):
    assert lane_of(analyse(fake_run(rounds("podman-stock", [10.0] * 3), metric="T1")), "podman-stock").median == 7.0


def test_hosts_are_kept_apart(fake_run, analyse):
    records = rounds("podman-stock", [4.0] * 3) + rounds("podman-stock", [8.0] * 3, 10, host="node2")
    result = analyse(fake_run(records))
    assert [(host.host, host.lanes[0].median) for host in result.hosts] == [("node1", 4.0), ("node2", 8.0)]


def test_a_run_without_records_says_what_to_do(fake_run, analyse):
    with pytest.raises(ReportError, match="no records yet"):
        analyse(fake_run([]))


def test_advisor_takes_the_faster_slimming_and_leaves_out_what_fails(fake_run, analyse):
    records = rounds("podman-stock", [12.0, 12.1, 12.2] * 2) + rounds("sleep1-mapped", [1.7, 1.8, 1.9] * 2, 10)
    records += [*rounds("podman-mapped", [1.0, 1.0], 20), synthetic.failed(22, "podman-mapped", 3)]
    advice = advise(analyse(fake_run(records)).hosts[0])
    assert (advice.lane, advice.slimming) == ("sleep1-mapped", "sleep1")
    assert any("podman-mapped is left out: 1 of 3 iterations failed" in reason for reason in advice.reasons)
    assert any(
        "without slimming, the best lane (podman-stock) takes 12.1 s, 6.72×" in reason for reason in advice.reasons
    )


def test_advisor_takes_the_smaller_checkpoint_where_times_do_not_decide(fake_run, analyse):
    records = rounds("podman-stock", [1.7, 1.8, 1.9]) + rounds("sleep1-mapped", [1.71, 1.82, 1.9], 10)
    advice = advise(analyse(fake_run(records)).hosts[0])
    assert advice.lane == "sleep1-mapped"
    assert "cannot be told apart" in advice.reasons[0]


def test_advisor_is_silent_without_a_choice(fake_run, analyse):
    assert advise(analyse(fake_run(rounds("podman-stock", [1.0] * 3))).hosts[0]) is None


def test_lane_defaults_are_those_of_the_contract():
    lane = Lane(name="a", start="restore", runtime="podman")
    assert (lane.build, lane.source, lane.checkpoint.build, lane.page_cache) == ("current", "store", "stock", "warm")
