# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules write is what the controller reads: what one side writes, the other one accepts."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.ckpt import errors
from ansible.module_utils.ckpt.measure import record, results
from ansible.module_utils.ckpt.server import client as http

from gpuckpt_report.records import schema

IDENTITY = {"run_id": "r1", "host": "node1", "seq": 3, "lane": "podman-stock", "iteration": 1, "warmup": False}


@pytest.fixture
def built():
    """A record of the modules' own making, as far as a restore fills it."""
    made = record.Record("restore", IDENTITY)
    for number, name in enumerate(record.MARKS):
        made.mark(name, 100.0 + number)
    made.take(results.Phases({"criu": (100.0, 101.0), "health": (101.0, 103.0)}))
    made.take(results.ImageSizes({"pages": 5, "mm": 1}, 6), http.Completion(["a"], 100.5, 100.6, 100.7))
    made.take(results.Checks(exit_zero=True))
    return made


def parse(made):
    return schema.Record.model_validate_json(json.dumps(made.as_dict([["criu", "restore"]])))


def test_a_record_of_the_modules_is_valid_and_keeps_its_figures(built):
    parsed = parse(built)
    assert (parsed.t.T0, parsed.t.T4, parsed.status) == (0.0, 4.0, "ok")
    assert parsed.phases["unattributed"].end == pytest.approx(1.0)
    assert parsed.bytes.images == {"pages": 5, "mm": 1}


@pytest.mark.parametrize("gate", record.GATES)
def test_every_gate_that_fails_makes_a_valid_failed_record(built, gate):
    built.take(results.Checks(**{gate: False}))
    built.judge()
    parsed = parse(built)
    assert (parsed.status, parsed.reason) == ("failed", record.GATES[gate][0])


def test_a_record_with_a_failed_gate_that_nobody_judged_is_refused(built):
    built.take(results.Checks(canary_equal=False))
    with pytest.raises(schema.ValidationError, match="truth gate"):
        parse(built)


@pytest.mark.parametrize("kind", ["cold", "checkpoint", "probe"])
def test_a_record_that_failed_before_it_began_is_valid(kind):
    made = record.Record(kind, IDENTITY)
    made.failure = errors.CkptError("port_taken", "port 18080 is taken: stop what listens there")
    assert parse(made).reason == "port_taken"


def test_a_probe_and_a_start_of_the_bill_are_valid(built):
    built.identity |= {"warmup": True, "bill": True}
    start = record.Record("restore", built.identity)
    start.marks = built.marks
    assert (start.up_at, parse(start).bill.started) == (105.0, "restore")
    probe = record.Record("probe", IDENTITY)
    probe.bill = results.BillOfLoad("restore", asked_s=60.0, concurrency=2, max_tokens=3)
    completion = http.Completion(["a", "b", "c"], 100.5, 100.6, 100.8)
    probe.mark("T0", 100.0)
    probe.take(results.Load([completion.as_request(100.0)] * 2, 100.6, 100.8, after_s=60.01))
    parsed = parse(probe)
    assert parsed.requests[0].requested_s == 0.5
    said = record.outcome(probe.as_dict([]))
    assert said == "podman-stock, bill 1: 20 tokens/s, 100.0 ms a token, 60.0 s after it was up"
