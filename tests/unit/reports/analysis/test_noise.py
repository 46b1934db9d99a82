# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import math

import numpy as np
import pytest
import synthetic

from gpuckpt_report.analysis import noise, stats
from gpuckpt_report.show import render

ROUNDS = 8


@pytest.fixture
def judge(fake_run, analyse):
    """A function that makes a run of two lanes and judges how calm it was."""
    numbers = iter(range(100))

    def run(drift=0.0, spread=0.01, loop_spread=0.0, steal=0.0, load=0.4, recorded=True):
        draw = np.random.default_rng(1)
        records = []
        for number in range(2 * ROUNDS):
            lane = ("podman-stock", "podman-mapped")[number % 2]
            seconds = (
                (12.0, 3.6)[number % 2]
                * (1 + drift * number / (2 * ROUNDS - 1))
                * math.exp(spread * draw.standard_normal())
            )
            loop = 0.02 * (1 + loop_spread * (number % 4 == 0))
            conditions = (
                {"calibration_s": loop, "load_before": load, "processors": 2, "steal_share": steal}
                if recorded
                else None
            )
            records.append(synthetic.record(number, lane, number // 2 + 1, seconds, conditions=conditions))
        folder = fake_run(records, name=f"run{next(numbers)}")
        result = analyse(folder)
        render.write(folder, result)
        return noise.judge(result.hosts[0]), (folder.path / "report.html").read_text()

    return run


def test_a_calm_machine_is_called_calm_with_what_it_could_have_found(judge):
    found, html = judge()
    assert found.grade == noise.CALM
    assert 0 < found.could_find < 0.1
    assert '<span class="badge good">calm</span>' in html
    assert "no drift found over the run" in found.sentence
    assert "would have been found (9 times of 10)." in html
    assert found.samples_for_a_tenth is None


def test_a_run_that_finds_too_little_says_how_many_samples_it_takes(judge):
    few = judge(spread=0.1)[0]
    assert few.could_find > 0.1
    assert f"; for 10% a lane needs about {few.samples_for_a_tenth} samples." in few.sentence
    assert "for 10% a lane needs more than 200 samples: measure on a calmer machine." in judge(spread=1.0)[0].sentence
    # the error falls with the root of the number
    root = math.sqrt(few.samples_for_a_tenth / ROUNDS)
    assert math.log1p(few.could_find) / root == pytest.approx(math.log1p(0.1), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"loop_spread": 0.2}, "a fixed loop between entries took up to 20% longer"),
        ({"load": 17.0}, "its load was 8.5 for each processor"),
        ({"steal": 0.03}, "other guests took up to 3.0% of its processors"),
        ({"drift": 0.2}, "times drifted by +2"),
    ],
)
def test_a_noisy_machine_is_called_noisy_with_the_reason(judge, changes, reason):
    found, html = judge(**changes)
    assert found.grade == noise.NOISY
    assert reason in found.sentence
    assert '<span class="badge bad">noisy</span>' in html


def test_more_spread_hides_larger_differences(judge):
    assert judge(spread=0.1)[0].could_find > 2 * judge(spread=0.02)[0].could_find


def test_records_without_conditions_are_not_called_calm(judge):
    found, html = judge(recorded=False)
    assert found.grade == noise.UNKNOWN
    assert "noise not known" in html
    assert judge(recorded=False, drift=0.2)[0].grade == noise.NOISY


def test_a_trend_of_lanes_with_levels_of_their_own():
    groups = [[(place, level + 0.01 * place) for place in range(start, 40, 4)] for start, level in ((0, 0.0), (2, 5.0))]
    found = stats.trend(groups)
    assert found.value == pytest.approx(0.38)
    assert stats.trend([[(0, 1.0), (1, 1.0)]]) is None
    assert stats.trend([]) is None
