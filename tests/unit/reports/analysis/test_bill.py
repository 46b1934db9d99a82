# SPDX-License-Identifier: GPL-3.0-or-later
"""The bill of a start: what a server does under load, next to one that was started cold."""

from __future__ import annotations

import csv
import io
import json

import pytest
import synthetic

from gpuckpt_report import __main__
from gpuckpt_report.analysis import bill
from gpuckpt_report.records import schema
from gpuckpt_report.show import render, tables

LOAD = {"concurrency": 2, "max_tokens": 11}


def probe(seq, lane, round_number, asked_s, token_s, **changes):
    """Two requests at a time of 11 tokens, the second sent 0.1 s after the first."""
    requests = [
        {"requested_s": sent, "ttft_s": 0.1, "duration_s": 0.1 + 10 * token_s, "tokens": 11} for sent in (0.0, 0.1)
    ]
    started = "cold" if lane == "cold" else "restore"
    part = {"started": started, "asked_s": asked_s, "at_s": asked_s + 0.5, **LOAD}
    moments = {"T0": 0.0, "T3": 0.0, "T4": 0.1, "T5": 0.2 + 10 * token_s}
    return synthetic.record(
        seq, lane, round_number, 1.0, kind="probe", phases={}, t=moments, requests=requests, bill=part, **changes
    )


def start(seq, lane, round_number, **changes):
    started = {"started": "cold" if lane == "cold" else "restore"}
    return synthetic.record(seq, lane, round_number, 99.0, warmup=True, bill=started, **changes)


def run_with_bill(rounds):
    records = [synthetic.record(seq, lane, 1, 2.0) for seq, lane in ((1, "cold"), (2, "podman-mapped"))]
    for number in range(1, rounds + 1):
        for place, (lane, at_once, later) in enumerate((("cold", 0.01, 0.01), ("podman-mapped", 0.02, 0.01))):
            seq = 100 + 10 * number + 2 * place
            records.append(start(seq, lane, number))
            records.append(probe(seq, lane, number, 0.0, at_once))
            records.append(probe(seq + 1, lane, number, 60.0, later))
    return records


@pytest.fixture
def analysed(fake_run, analyse):
    def make(records, **changes):
        return analyse(fake_run(records, **changes)).hosts[0]

    return make


def test_throughput_is_all_tokens_over_the_time_of_the_whole_batch(analysed):
    host = analysed(run_with_bill(1))
    (at_once, later) = next(lane for lane in host.lanes if lane.name == "podman-mapped").bill
    assert (at_once.round, at_once.asked_s, at_once.at_s, at_once.requests) == (1, 0.0, 0.5, 2)
    assert at_once.tokens_per_s == pytest.approx(22 / (0.1 + 0.1 + 0.2))
    assert at_once.token_s == pytest.approx(0.02)
    assert later.tokens_per_s == pytest.approx(22 / (0.1 + 0.1 + 0.1))


def test_with_six_rounds_medians_stand_next_to_a_cold_start_with_an_interval(analysed):
    host = analysed(run_with_bill(6))
    table = tables.served(host)
    assert table.headings[1:5] == [
        "tokens/s at once",
        "× cold start (interval)",
        "ms a token at once",
        "× cold start (interval)",
    ]
    assert table.headings[5] == "tokens/s after 60 s"
    cold, mapped = table.rows
    assert cold[:5] == ["cold", "73", "–", "10.00", "–"]
    assert mapped[:5] == ["podman-mapped", "55", "0.75× (0.75× … 0.75×)", "20.00", "2.00× (2.00× … 2.00×)"]
    assert mapped[5:] == ["73", "1.00× (1.00× … 1.00×)", "10.00", "1.00× (1.00× … 1.00×)", "6"]
    assert "2 requests at a time" in tables.served_note(host)
    assert "0.5 s and 60.5 s" in tables.served_note(host)


def test_below_six_rounds_the_values_are_shown_and_nothing_is_compared(analysed):
    mapped = tables.served(analysed(run_with_bill(2))).rows[1]
    assert mapped[:5] == ["podman-mapped", "55, 55", "–", "20.00, 20.00", "–"]


def test_one_round_that_failed_leaves_five_and_no_ratio(analysed):
    records = run_with_bill(6)
    index = next(
        i for i, record in enumerate(records) if record["kind"] == "probe" and record["lane"] == "podman-mapped"
    )
    failure = {"status": "failed", "reason": "server_unhealthy", "message": "the server broke off: see its log"}
    records[index] = {**records[index], **failure, "requests": []}
    host = analysed(records)
    mapped = tables.served(host).rows[1]
    assert mapped[2] == "–"
    assert mapped[6] == "1.00× (1.00× … 1.00×)"
    assert [record["reason"] for record in host.failures] == ["server_unhealthy"]


def test_a_cold_start_of_another_server_is_no_yardstick(analysed):
    lanes = [
        {"name": "cold", "start": "cold", "runtime": "podman", "server": {"extra_args": ["--eager"]}},
        {"name": "podman-mapped", "start": "restore", "runtime": "podman"},
    ]
    host = analysed(run_with_bill(6), lanes=lanes)
    mapped = tables.served(host).rows[1]
    assert (mapped[1], mapped[2]) == ("55", "–")


def test_starts_of_the_bill_enter_no_other_figure(analysed):
    host = analysed(run_with_bill(6))
    assert [(lane.name, lane.n, lane.median) for lane in host.lanes] == [("cold", 1, 2.0), ("podman-mapped", 1, 2.0)]
    assert host.probes == []
    assert host.first_starts == []


def test_the_bill_has_columns_in_the_csv(fake_run):
    rows = list(csv.DictReader(io.StringIO(render.records_csv(fake_run(run_with_bill(1)).records()))))
    billed = [row for row in rows if row["bill.tokens_per_s"]]
    assert len(billed) == 4
    assert all(row["kind"] == "probe" for row in billed)
    assert [float(row["bill.at_s"]) for row in billed] == [0.5, 60.5, 0.5, 60.5]
    assert "bill." not in render.records_csv(fake_run(name="other").records())


def test_without_a_bill_there_is_no_table(analysed):
    host = analysed([synthetic.record(1, "cold", 1, 2.0)])
    assert tables.served(host) is None
    assert tables.served_note(host) == ""
    assert bill.moments(host) == []


def test_the_summary_has_the_columns_within_80(fake_run, capsys):
    run = fake_run(run_with_bill(6))
    assert __main__.main(["--runs", str(run.path.parent), "--database", "sqlite://", "summary", "latest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80 and not line.startswith("report: ")] == []
    assert any(line.split()[:3] == ["tokens/s", "at", "once"] for line in lines)
    assert any(
        line.split() == ["podman-mapped", "20.00", "2.00", "(2.00–2.00)", "10.00", "1.00", "(1.00–1.00)", "6"]
        for line in lines
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"requests": []}, "needs requests"),
        ({"requests": [{"ttft_s": 0.1, "duration_s": 0.2, "tokens": 3}]}, "requested_s"),
        ({"bill": {"started": "cold", **LOAD}}, "needs bill.asked_s"),
        ({"bill": {"started": "warm"}}, "started"),
    ],
)
def test_a_probe_of_the_bill_without_what_its_figures_need_is_refused(changes, words):
    document = {**probe(1, "cold", 1, 0.0, 0.01), **changes}
    with pytest.raises(schema.ValidationError, match=words):
        schema.Record.model_validate_json(json.dumps(document))


def test_a_start_of_the_bill_that_is_not_marked_is_refused():
    with pytest.raises(schema.ValidationError, match="must be marked as warm-up"):
        schema.Record.model_validate_json(json.dumps(start(1, "cold", 1) | {"warmup": False}))


def test_a_manifest_tells_how_the_bill_is_taken():
    plan = {"rounds": 6, "moments_s": [0, 60.5], "requests": 8, "tokens": 128}
    parsed = schema.RunManifest.model_validate_json(json.dumps(synthetic.manifest(bill=plan)))
    assert parsed.bill.moments_s == [0, 60.5]
