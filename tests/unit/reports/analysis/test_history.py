# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import math
import re
from datetime import timedelta

import numpy as np
import pytest
import synthetic

from gpuckpt_report import __main__ as cli
from gpuckpt_report.analysis import history
from gpuckpt_report.errors import ReportError

LANE = "podman-mapped"
WOBBLE = (0.99, 1.01, 1.0, 0.995, 1.005, 1.0, 0.99, 1.01)
# How far runs of the same code lie from each other, in multiples of the usual: some machines have bad days.
NOISES = {
    "normal": lambda draw, size: draw.standard_normal(size),
    "heavy tails": lambda draw, size: draw.standard_t(3, size),
    "a run of ten is off": lambda draw, size: draw.standard_normal(size) * np.where(draw.random(size) < 0.1, 4, 1),
}


@pytest.fixture
def lane_over(fake_run, tmp_path):
    """A function that makes a run for each factor, a day each, and returns the folder of the runs."""

    def make(factors, changed=None, failing=()):
        for number, factor in enumerate(factors):
            name = f"run{number:02}"
            records = [
                synthetic.record(round_number, LANE, round_number, 3.6 * factor * wobble, run_id=name)
                for round_number, wobble in enumerate(WOBBLE, start=1)
            ]
            if number in failing:
                records = [synthetic.failed(entry["seq"], LANE, entry["iteration"], run_id=name) for entry in records]
            manifest = {"git": {"sha": f"{number:02}{'a' * 38}", "dirty": False}} | (changed or {}).get(number, {})
            started = (synthetic.START + timedelta(days=number)).isoformat()
            fake_run(records, name=name, run_id=name, started_at=started, iterations=len(WOBBLE), **manifest)
        return tmp_path / "runs"

    return make


def run_history(runs, *options):
    return cli.main(["--runs", str(runs), "history", LANE, *options])


def spread(runs, seed=1, size=0.01):
    return list(np.exp(size * np.random.default_rng(seed).standard_normal(runs)))


@pytest.mark.parametrize("noise", NOISES)
def test_at_most_one_in_twenty_histories_of_identical_runs_has_a_false_alarm(noise):
    draw = np.random.default_rng(20261129)
    values = 0.05 * NOISES[noise](draw, (300, 20))
    alarms = sum(len(history.find_levels(list(row))) > 1 for row in values)
    assert alarms <= 15


def test_sixty_identical_runs_raise_two_false_alarms_in_five_histories_at_most():
    values = 0.05 * np.random.default_rng(3).standard_normal((40, 60))
    alarms = sum(len(history.find_levels(list(row))) - 1 for row in values)
    assert alarms <= 16


@pytest.mark.parametrize("factor", [1.1, 1 / 1.1])
def test_ten_per_cent_are_found_on_a_calm_machine_where_they_are(factor):
    draw = np.random.default_rng(5)
    found = 0
    for _ in range(100):
        values = 0.01 * draw.standard_normal(14)
        values[10:] += math.log(factor)
        found += [level.start for level in history.find_levels(list(values))] == [0, 10]
    assert found >= 90


def test_a_change_stays_where_it_was_found():
    values = list(np.log(spread(8))) + list(np.log(spread(12, seed=2)) + 0.3)
    for count in range(11, len(values) + 1):
        assert [level.start for level in history.find_levels(values[:count])] == [0, 8]


def test_a_single_run_that_was_disturbed_is_no_change():
    values = list(np.log(spread(20)))
    values[9] += 0.5
    assert len(history.find_levels(values)) == 1


def test_a_change_is_told_with_cause_and_how_to_accept_it(lane_over, capsys):
    runs = lane_over([*spread(8), *(1.3 * value for value in spread(4, seed=2))])
    assert run_history(runs) == 0
    assert run_history(runs, "--check") == cli.EXIT_CHANGED
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    flat = " ".join(said.split())
    assert re.search(
        r"run run08: slower by (29|30|31)% \(\+2\d% … \+3\d%\)\. With it changed: commit: 07a+ → 08a+\.", flat
    )
    entry = re.search(r"^  - run: run08\n(?:    .*\n)+", said, re.M)[0]
    (runs / history.ACCEPTED_FILE).write_text(entry.replace("WHY", "the new kernel"))
    assert run_history(runs, "--check") == 0
    accepted = " ".join(capsys.readouterr().out.split())
    assert "an accepted shift, a new level: the new kernel" in accepted
    assert "slower by" not in accepted
    assert "the present level has 4 runs; changes are looked for from 6 on" in accepted


def test_a_change_after_an_accepted_shift_is_told(lane_over, capsys):
    factors = [*spread(6), *(1.3 * value for value in spread(6, seed=2)), *(1.7 * value for value in spread(5, seed=4))]
    runs = lane_over(factors)
    (runs / "shifts.yml").write_text(f"- {{run: run06, lane: {LANE}, reason: known, date: 2026-11-29}}\n")
    assert run_history(runs, "--check", "--json", "--accepted", str(runs / "shifts.yml")) == cli.EXIT_CHANGED
    [told] = json.loads(capsys.readouterr().out)
    verdicts = {run["run_id"]: run["verdict"] for run in told["runs"] if run["verdict"]}
    assert verdicts == {"run06": "accepted", "run12": "slower"}
    assert told["alarms"] == ["run12"]
    [change] = [run for run in told["runs"] if run["run_id"] == "run12"]
    assert change["ratio"] == pytest.approx(1.7 / 1.3, rel=0.02)
    assert change["ratio_interval"][0] < change["ratio"] < change["ratio_interval"][1]


def test_a_faster_lane_starts_a_level_too(lane_over, capsys):
    runs = lane_over([*spread(8), *(0.7 * value for value in spread(4, seed=2))])
    assert run_history(runs, "--check") == cli.EXIT_CHANGED
    assert "FASTER" in capsys.readouterr().out


def test_runs_of_another_server_are_left_out_as_compare_refuses_them(lane_over, capsys):
    other = {"server": {"name": "gpuckpt-reference", "model": "another"}}
    runs = lane_over([*(2 * value for value in spread(6)), *spread(6, seed=2)], changed=dict.fromkeys(range(6), other))
    assert run_history(runs, "--check") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "run run00: left out, it measured something else: server's model" in said
    assert "the present level has 6 runs" in said
    assert run_history(runs, "--check", "--allow", "server") == cli.EXIT_CHANGED


def test_a_lane_that_was_defined_otherwise_is_left_out(lane_over, capsys):
    lanes = synthetic.manifest()["lanes"]
    patched = [{**lane, "build": "patched"} if lane["name"] == LANE else lane for lane in lanes]
    runs = lane_over(spread(4), changed={0: {"lanes": patched}})
    assert run_history(runs) == 0
    assert "lane defined otherwise: build" in " ".join(capsys.readouterr().out.split())


def test_a_newest_run_without_a_good_record_is_an_alarm(lane_over, capsys):
    runs = lane_over(spread(4), failing=[1, 3])
    assert run_history(runs, "--check") == cli.EXIT_CHANGED
    assert "run run03: no good record of the lane" in " ".join(capsys.readouterr().out.split())


def test_a_run_that_cannot_be_read_is_named_and_left_out(lane_over, capsys):
    runs = lane_over(spread(3))
    (runs / "run01" / "records.jsonl").write_bytes(b"\x00nonsense\n")
    assert run_history(runs, "--json") == 0
    said = capsys.readouterr()
    assert [run["run_id"] for run in json.loads(said.out)[0]["runs"]] == ["run00", "run02"]
    assert "left out, as it cannot be read" in said.err


def test_another_moment_and_another_host(lane_over, capsys):
    runs = lane_over(spread(3))
    assert run_history(runs, "--metric", "T1", "--json") == 0
    [told] = json.loads(capsys.readouterr().out)
    assert told["runs"][0]["median"] == pytest.approx(0.7 * 3.6, rel=0.05)
    assert run_history(runs, "--host", "elsewhere") == cli.EXIT_BAD_INPUT
    assert "has a lane 'podman-mapped' on elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- {run: a, lane: b, reason: c}", "0.date is missing"),
        ("- {run: a, lane: b, reason: c, date: 2026-01-01, hots: d}", "0.hots: unknown key"),
        ("run: a", "not a list"),
        ("- [", "is not YAML"),
    ],
)
def test_a_file_of_shifts_that_cannot_be_right_is_refused(tmp_path, text, complaint):
    path = tmp_path / "shifts.yml"
    path.write_text(text)
    with pytest.raises(ReportError) as caught:
        history.read_accepted(path)
    assert complaint in str(caught.value)


def test_a_shift_that_matches_no_run_is_named(lane_over, capsys):
    runs = lane_over(spread(3))
    (runs / history.ACCEPTED_FILE).write_text(f"- {{run: run77, lane: {LANE}, reason: c, date: 2026-01-01}}\n")
    assert run_history(runs, "--check") == 0
    assert f"the accepted shift of {LANE} at run77 matches no run here" in capsys.readouterr().err
