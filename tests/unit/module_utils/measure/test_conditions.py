# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node was doing meanwhile. The kernel here is real; contents of files that it lacks are of Linux 6.1."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.measure import conditions

from gpuckpt_report.records import schema

PRESSURE = "some avg10=0.16 avg60=0.03 avg300=0.01 total=1234567\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


def test_a_watch_on_this_machine_is_what_the_schema_takes() -> None:
    watch = conditions.Watch()
    busy = [subprocess.Popen([sys.executable, "-c", "for _ in range(3_000_000): pass"]) for _ in range(2)]
    assert [process.wait(60) for process in busy] == [0, 0]
    found = schema.Conditions.model_validate(watch.as_dict())
    assert 0 < found.calibration_s < 60
    assert found.load_before >= 0
    assert found.steal_share is not None


def test_the_fixed_loop_takes_its_time() -> None:
    assert conditions.calibrate() > 1e-4


def test_pressure_of_a_kernel_that_tells_and_of_one_that_does_not(tmp_path: Path) -> None:
    (tmp_path / "cpu").write_text(PRESSURE)
    (tmp_path / "io").write_text("nonsense")
    assert conditions.stalled_us("cpu", str(tmp_path)) == 1234567
    assert conditions.stalled_us("io", str(tmp_path)) is None
    assert conditions.stalled_us("memory", str(tmp_path)) is None


def test_stolen_time_is_the_eighth_field(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  10 20 30 40 50 60 70 80 90 100\ncpu0 1 2 3\n")
    assert conditions.cpu_times(str(stat))[conditions.STEAL] == 80
    stat.write_text("cpu 1 2 3\n")
    assert conditions.cpu_times(str(stat)) == [0] * 8


def test_the_frequency_is_the_mean_of_the_processors(tmp_path: Path) -> None:
    for number, khz in enumerate((2_000_000, 3_000_000)):
        (tmp_path / f"cpu{number}").write_text(f"{khz}\n")
    assert conditions.frequency_mhz(str(tmp_path / "cpu*")) == pytest.approx(2500.0)
    assert conditions.frequency_mhz(str(tmp_path / "none*")) is None
