# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
import synthetic

from gpuckpt_report import __main__ as cli
from gpuckpt_report.analysis import compare
from gpuckpt_report.errors import ReportError

LANES = ("podman-stock", "podman-mapped", "sleep1-mapped")
SECONDS = (12.0, 3.6, 1.7)
ROUNDS = 8


@pytest.fixture
def make(fake_run, analyse):
    """A function that makes a run of so many seconds for each lane and round, and analyses it."""
    numbers = iter(range(1000))

    def run(times, analysed=True, **changes):
        name = f"run{next(numbers)}"
        records = [
            synthetic.record(100 * row + column, lane, column + 1, float(value), run_id=name)
            for row, (lane, values) in enumerate(times.items())
            for column, value in enumerate(values)
        ]
        folder = fake_run(records, name=name, run_id=name, iterations=ROUNDS, **changes)
        return analyse(folder) if analysed else folder

    return run


class Machine:
    """Measures runs that nobody measured: noise of samples, of each lane's checkpoint, and of the whole machine."""

    def __init__(self, seed, samples, lanes, whole):
        self.draw = np.random.default_rng(seed)
        self.sizes = (samples, lanes, whole)

    def run(self, factor=1.0):
        samples, lanes, whole = self.sizes
        drift = np.exp(whole * self.draw.standard_normal())
        return {
            lane: seconds
            * drift
            * (factor if lane == LANES[-1] else 1.0)
            * np.exp(lanes * self.draw.standard_normal() + samples * self.draw.standard_normal(ROUNDS))
            for lane, seconds in zip(LANES, SECONDS, strict=True)
        }


def verdicts(comparison):
    return {change.lane: change.verdict for change in comparison.changes}


def steady(factor=1.0, lanes=LANES):
    wobble = np.array([0.99, 1.0, 1.01, 1.0, 0.995, 1.005, 1.0, 1.0])
    return {lane: seconds * wobble * factor for lane, seconds in zip(LANES, SECONDS, strict=True) if lane in lanes}


def test_two_runs_alone_tell_nothing(make):
    comparison = compare.compare([make(steady())], [make(steady(1.3))])
    assert set(verdicts(comparison).values()) == {compare.UNCLEAR}
    assert "--control" in comparison.changes[0].why
    assert comparison.alarms == []


def test_identical_noisy_runs_raise_at_most_one_alarm_in_twenty_pairs(make):
    noisy = Machine(7, samples=0.08, lanes=0.04, whole=0.15)
    alarms = 0
    for _ in range(20):
        sides = [[make(noisy.run()) for _ in range(3)] for _ in range(2)]
        alarms += any(change.verdict in (compare.SLOWER, compare.FASTER) for change in compare.compare(*sides).changes)
    assert alarms <= 1


def test_a_control_takes_out_what_the_machine_did(make):
    noisy = Machine(8, samples=0.02, lanes=0.0, whole=0.15)
    alarms = found = 0
    for _ in range(20):
        before, same, slower = make(noisy.run()), make(noisy.run()), make(noisy.run(1.2))
        alarms += bool(compare.compare([before], [same], control=LANES[0]).alarms)
        found += [change.lane for change in compare.compare([before], [slower], control=LANES[0]).alarms] == [LANES[-1]]
    assert alarms <= 1
    assert found >= 18


def test_ten_per_cent_are_found_on_a_calm_machine(make):
    calm = Machine(9, samples=0.02, lanes=0.005, whole=0.01)
    found = 0
    for _ in range(20):
        before, after = ([make(calm.run(factor)) for _ in range(3)] for factor in (1.0, 1.1))
        found += [change.lane for change in compare.compare(before, after).alarms] == [LANES[-1]]
    assert found >= 18


def test_a_comparison_says_what_it_could_have_found(make):
    calm, noisy = (
        compare.compare(*([make(machine.run()) for _ in range(3)] for _ in range(2)))
        for machine in (Machine(1, 0.01, 0.002, 0.005), Machine(2, 0.1, 0.1, 0.1))
    )
    assert set(verdicts(calm).values()) == {compare.SAME}
    assert all(change.could_find < 0.1 for change in calm.changes)
    assert set(verdicts(noisy).values()) == {compare.UNCLEAR}
    assert all(change.could_find > 0.1 and "too noisy" in change.why for change in noisy.changes)
    assert "would have been found in every lane" in compare.sentences(calm)[-1]


def test_old_and_new_build_in_one_run(make):
    times = steady()
    times["podman-mapped"], times["sleep1-mapped"] = times["podman-stock"] * 1.002, times["podman-stock"] * 1.2
    run = make(times)
    pairs = [("podman-stock", "podman-mapped"), ("podman-stock", "sleep1-mapped")]
    comparison = compare.compare_within(run, pairs)
    assert verdicts(comparison) == {"podman-mapped": compare.SAME, "sleep1-mapped": compare.SLOWER}
    with pytest.raises(ReportError, match="has no lane 'x'"):
        compare.compare_within(run, [("podman-stock", "x")])


def test_lanes_that_vanished_and_new_ones_are_listed(make):
    comparison = compare.compare([make(steady(lanes=LANES[:2]))], [make(steady(lanes=LANES[1:]))])
    assert verdicts(comparison) == {LANES[0]: compare.GONE, LANES[1]: compare.UNCLEAR, LANES[2]: compare.NEW}
    assert [change.lane for change in comparison.alarms] == [LANES[0]]
    allowed = compare.compare([make(steady())], [make(steady(lanes=LANES[1:]))], allowed=["gone"])
    assert allowed.alarms == []
    assert verdicts(allowed)[LANES[0]] == compare.GONE_ALLOWED


def test_a_lane_that_fails_now_is_an_alarm(fake_run, analyse, make):
    records = [synthetic.record(number, LANES[0], number, 12.0, run_id="bad") for number in range(1, ROUNDS)]
    records.append(synthetic.failed(ROUNDS, LANES[0], ROUNDS, run_id="bad"))
    failing = analyse(fake_run(records, name="bad", run_id="bad"))
    comparison = compare.compare([make(steady(lanes=LANES[:1]))], [failing])
    assert [change.verdict for change in comparison.alarms] == [compare.BROKEN]


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        ("gpu", {"hosts": {"node1": {"gpu": {"gpus": [{"name": "H100"}]}}}}, 'GPUs: [] → [["H100", null]]'),
        ("server", {"server": {"name": "vllm"}}, "server's name: gpuckpt-reference → vllm"),
        ("weights", {"hosts": {"node1": {"weights": {"sha256": "ab"}}}}, "weights: "),
        ("machine", {"hosts": {"node1": {"host": {"cpu": {"model": "Other", "count": 4}}}}}, "processors: "),
    ],
)
def test_sides_that_measured_something_else_are_refused_unless_allowed(make, kind, changes, text):
    plain = {"hosts": {"node1": {"host": {"cpu": {"model": "Fake", "count": 2}}}}} if kind == "machine" else {}
    plain = plain or {"hosts": {"node1": {}}}
    before, after = make(steady(), **plain), make(steady(), **(plain | changes))
    with pytest.raises(ReportError, match=f"--allow {kind}") as refusal:
        compare.compare([before], [after])
    assert text in str(refusal.value)
    allowed = compare.compare([before], [after], allowed=[kind])
    assert any(difference.startswith(text[:8]) for difference in allowed.differences)


def test_a_redefined_lane_is_not_compared(make):
    lanes = synthetic.manifest()["lanes"]
    lanes[-1] = lanes[-1] | {"switches": {"CRIU_RESTORE_THREADS": 4}}
    sides = [make(steady()) for _ in range(3)], [make(steady(), lanes=lanes) for _ in range(3)]
    comparison = compare.compare(*sides)
    assert verdicts(comparison)[LANES[-1]] == compare.REDEFINED
    assert "CRIU_RESTORE_THREADS" in comparison.changes[-1].why
    assert verdicts(compare.compare(*sides, allowed=["lanes"]))[LANES[-1]] == compare.SAME


def test_a_control_must_be_the_same_on_both_sides(make):
    def built(digest):
        build = {"names": ["current"], "manifest": {"digest": digest}}
        return make(steady(), hosts={"node1": {"criu": {"builds": {"current": build}}}})

    with pytest.raises(ReportError, match="uses another CRIU on each side"):
        compare.compare([built("a")], [built("b")], control=LANES[0])
    assert LANES[0] in verdicts(compare.compare([built("a")], [built("a")], control=LANES[0]))
    with pytest.raises(ReportError, match="not in every run"):
        compare.compare([built("a")], [built("a")], control="cold")


def test_runs_of_another_metric_are_refused(make):
    with pytest.raises(ReportError, match="cannot be compared"):
        compare.compare([make(steady())], [make(steady(), metric="T1")])


def test_exit_status_junit_and_json(make, tmp_path, capsys):
    folders = [make(steady(factor), analysed=False) for factor in (1.0, 1.001, 0.999, 1.2, 1.201, 1.199)]
    old, new = (",".join(str(folder.path) for folder in side) for side in (folders[:3], folders[3:]))
    junit = tmp_path / "junit.xml"
    assert cli.main(["compare", old, new, "--junit", str(junit), "--json"]) == cli.EXIT_WORSE
    told = json.loads(capsys.readouterr().out)
    assert (told["alarms"], told["undecided"]) == (3, 0)
    assert told["changes"][0]["ratio"] == pytest.approx(1.2, rel=0.01)
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "3", "0")
    assert suite.find("testcase/failure").get("message") == compare.SLOWER
    assert cli.main(["compare", old, old]) == 0
    assert (
        cli.main(["compare", str(folders[0].path), str(folders[1].path), "--junit", str(junit)]) == cli.EXIT_UNDECIDED
    )
    assert ElementTree.parse(junit).getroot().get("skipped") == "3"
    assert cli.main(["compare", str(folders[0].path), "--rerun", "podman-stock=podman-stock"]) == 0
    assert cli.main(["compare", old]) == cli.EXIT_BAD_INPUT
    with pytest.raises(SystemExit):
        cli.main(["compare", old, new, "--allow", "everything"])
