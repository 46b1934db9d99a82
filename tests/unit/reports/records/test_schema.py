# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import re

import pytest
import synthetic
from pydantic import ValidationError

from gpuckpt_report.records.schema import Record, RunManifest, explain


def errors_of(model, document):
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(json.dumps(document))
    return explain(caught.value)


def record(**changes):
    return synthetic.record(7, "podman-stock", 1, 2.0) | changes


def test_a_record_survives_the_way_through_json():
    document = record(requests=[{"ttft_s": 0.1, "duration_s": 1, "tokens": 3}], gpu_mem_after=0)
    parsed = Record.model_validate_json(json.dumps(document))
    assert Record.model_validate_json(parsed.model_dump_json()) == parsed
    assert parsed.key == ("fake-run", "node1", 7, "restore")
    assert parsed.t.T4 == 2.0


def test_all_errors_are_named_at_once():
    lines = errors_of(Record, record(lane="No Lane", seq="7", reasn="typo", t={"T0": 0.0, "T4": 2.0, "T5": 1.0}))
    assert [re.split("[: ]", line)[0] for line in lines] == ["seq", "lane", "t", "reasn"]
    assert "reasn: unknown key" in lines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "failed"}, "a failed record needs a reason"),
        ({"status": "failed", "reason": "bad_luck"}, "reason must be 'criu_missing', "),
        ({"reason": "timeout"}, "status is ok, yet reason is timeout"),
        ({"checks": {"exit_zero": True, "canary_equal": False}}, "checks of the truth gate are false: canary_equal"),
        ({"t": {"T0": 0.0, "T3": 1.0}}, "needs T4 or at least T1"),
        ({"t": {"T0": 0.5, "T4": 1.0}}, "t.T0"),
        ({"t": {"T0": 0.0, "T4": -1.0}}, "t.T4"),
        ({"phases": {"criu": {"start": 2.0, "end": 1.0}}}, "phases.criu: end (1.0) lies before start (2.0)"),
        ({"kind": "floor"}, "ok records of kind floor, and only they"),
        ({"started_at": "2026-01-02T03:04:05"}, "started_at"),
        ({"schema_version": 2}, "schema_version"),
        ({"switches": {"LD_PRELOAD": "x"}}, "switches.LD_PRELOAD"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, message):
    assert any(message in line for line in errors_of(Record, record(**changes)))


def test_a_failed_record_may_miss_the_gate_and_the_moments():
    assert Record.model_validate_json(json.dumps(synthetic.failed(1, "podman-stock", 1))).t.T4 is None


def test_baseline_is_the_marked_lane_else_the_first_restore():
    document = synthetic.manifest()
    assert RunManifest.model_validate_json(json.dumps(document)).baselines == {"podman-stock"}
    document["lanes"][2]["baseline"] = True
    assert RunManifest.model_validate_json(json.dumps(document)).baselines == {"podman-mapped"}


def test_lanes_of_a_manifest_are_distinct_and_make_sense():
    lane = {"name": "a", "start": "restore", "runtime": "process"}
    lines = errors_of(RunManifest, synthetic.manifest(lanes=[lane | {"baseline": True}] * 2))
    assert lines == ["lane 'a' is named twice; only one lane can be the baseline, not a, a"]
    lines = errors_of(RunManifest, synthetic.manifest(lanes=[lane | {"page_cache": "dropped"}]))
    assert "needs source: disk" in lines[0]
    for wrong, problem in (
        ({"build": "stock"}, "resident_pool: true needs build: patched"),
        ({"build": "patched", "start": "cold"}, "a cold start has no use for build, resident_pool"),
    ):
        [line] = errors_of(RunManifest, synthetic.manifest(lanes=[lane | wrong | {"resident_pool": True}]))
        assert problem in line
    [line] = errors_of(RunManifest, synthetic.manifest(lanes=[lane | {"prefetch": True, "slimming": "kv-drop"}]))
    assert "prefetch: true needs slimming: staged" in line


@pytest.mark.parametrize("entry", [["cold", 1], {"seq": 1, "lane": "cold", "iteration": 1, "warmup": False}])
def test_both_forms_of_a_schedule_are_read(entry):
    manifest = RunManifest.model_validate_json(json.dumps(synthetic.manifest(schedule={"node1": [entry]})))
    [read] = manifest.schedule["node1"]
    assert (read.lane, read.iteration) == ("cold", 1) if isinstance(entry, dict) else read == tuple(entry)
