# SPDX-License-Identifier: GPL-3.0-or-later
"""The truth gate, and what a record holds."""

from __future__ import annotations

import json
import stat
from dataclasses import fields, replace
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.measure.record import GATES, Record, outcome, uncovered, write_record
from ansible.module_utils.ckpt.measure.results import Checks, Counter, CriuRun, ImageSizes, PageCache, Phases, Sizes
from ansible.module_utils.ckpt.vocabulary import REASONS

from gpuckpt_report.records import schema

IDENTITY = {"run_id": "r1", "host": "node1", "seq": 3, "lane": "podman", "iteration": 2, "warmup": False}


def complete() -> Record:
    record = Record("restore", IDENTITY)
    record.mark("T0", 100.0)
    record.mark("T1", 100.5)
    record.mark("T3", 100.4)
    record.mark("T4", 100.6)
    record.mark("T5", 100.7)
    record.take(Phases({"before_criu": (100.0, 100.2), "memory": (100.2, 100.4)}))
    record.checks = Checks(**dict.fromkeys(GATES, True))
    return record


def test_a_record_is_what_the_controller_accepts() -> None:
    record = complete()
    record.judge()
    found = record.as_dict([["podman", "restore"]])
    schema.Record.model_validate_json(json.dumps(found))
    assert found["status"] == "ok"
    assert found["t"] == {"T0": 0.0, "T1": 0.5, "T2": None, "T3": 0.4, "T4": 0.6, "T5": 0.7}
    assert found["phases"]["memory"] == {"start": 0.2, "end": 0.4}
    assert found["phases"]["unattributed"] == {"start": 0.0, "end": pytest.approx(0.2)}


@pytest.mark.parametrize("gate", GATES)
def test_each_gate_fails_alone(gate: str) -> None:
    record = complete()
    record.take(Checks(**{gate: False}))
    record.judge()
    found = record.as_dict([])
    schema.Record.model_validate_json(json.dumps(found))
    assert found["status"] == "failed"
    assert found["reason"] == GATES[gate][0]
    assert found["message"]


def test_each_check_is_a_gate_in_its_order() -> None:
    assert [field.name for field in fields(Checks)] == list(GATES)


def test_what_steps_leave_open_stays_as_it_was() -> None:
    record = Record("restore", IDENTITY)
    record.take(Checks(exit_zero=True), Checks(pids_alive=False), Counter(before=3), Counter(after=4), Sizes(gpu=5))
    record.take(Sizes(archive=6), Phases({"wake": (1.0, 2.0)}), PageCache("dropped", 0.0), ImageSizes({"pages": 7}, 8))
    record.take(CriuRun({"dumped": 1}, {"podman": {"x": 2}}, {"memory": (2.0, 3.0)}, mapped_bytes=9))
    found = record.as_dict([])
    assert (found["checks"]["exit_zero"], found["checks"]["pids_alive"]) == (True, False)
    assert found["counter"] == {"before": 3, "after": 4}
    assert found["bytes"] == {
        "images": {"pages": 7},
        "images_total": 8,
        "gpu": 5,
        "read": None,
        "mapped": 9,
        "archive": 6,
    }
    assert found["stats"] == {"criu": {"dumped": 1}, "podman": {"x": 2}}
    assert found["page_cache"] == {"asked": "dropped", "resident_fraction": 0.0}
    assert record.phases == {"wake": (1.0, 2.0), "memory": (2.0, 3.0)}


def test_a_gate_that_does_not_apply_does_not_fail() -> None:
    record = complete()
    record.checks = replace(record.checks, cuda_running=None)
    record.judge()
    assert record.failure is None


def test_a_known_cause_is_not_replaced_by_a_gate() -> None:
    record = complete()
    record.failure = CkptError("store_full", "the store is full.")
    record.take(Checks(exit_zero=False))
    record.judge()
    assert record.failure.reason == "store_full"


def test_a_failure_before_the_clock_is_a_record_too() -> None:
    record = Record("cold", IDENTITY)
    record.failure = CkptError("port_taken", "port 1 is in use.")
    parsed = schema.Record.model_validate_json(json.dumps(record.as_dict([])))
    assert (parsed.status, parsed.reason, parsed.t.T1) == ("failed", "port_taken", None)


def test_a_failure_has_a_reason_of_the_list() -> None:
    assert {reason for reason, _ in GATES.values()} <= set(REASONS)
    with pytest.raises(ValueError, match="not one of the reasons"):
        CkptError("made_up", "text")


@pytest.mark.parametrize(
    ("intervals", "end", "seconds"),
    [
        ([], 2.0, 2.0),
        ([(0.0, 2.0)], 2.0, 0.0),
        ([(0.5, 1.0), (0.75, 1.5)], 2.0, 1.0),
        ([(1.0, 5.0)], 2.0, 1.0),
        ([(3.0, 5.0)], 2.0, 2.0),
    ],
)
def test_uncovered_time(intervals: list[tuple[float, float]], end: float, seconds: float) -> None:
    assert uncovered(intervals, end) == pytest.approx(seconds)


def test_records_are_written_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "records" / "000001-restore.json"
    write_record(str(path), {"a": "ü"})
    write_record(None, {"a": 1})
    assert json.loads(path.read_text()) == {"a": "ü"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_the_outcome_is_one_line() -> None:
    record = complete()
    assert outcome(record.as_dict([])) == "podman, iteration 2: first token after 0.600 s"
    record.take(Checks(canary_equal=False))
    record.judge()
    record.identity["warmup"] = True
    failed = outcome(record.as_dict([]))
    assert failed.startswith("podman, warm-up 2: FAILED (canary_differs): the canary's tokens differ")


def test_the_folder_of_records_is_made_for_root_alone(tmp_path: Path) -> None:
    write_record(str(tmp_path / "run" / "records" / "000001-cold.json"), complete().as_dict([]))
    assert stat.S_IMODE((tmp_path / "run" / "records").stat().st_mode) == 0o700
