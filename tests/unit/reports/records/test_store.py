# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import stat
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime

import pytest
import synthetic

from gpuckpt_report import DATABASE_URL_VARIABLE
from gpuckpt_report import __main__ as cli
from gpuckpt_report.errors import ReportError
from gpuckpt_report.export import database
from gpuckpt_report.records.schema import Record
from gpuckpt_report.records.store import RunFolder, find_run


def parsed(document):
    return Record.model_validate_json(json.dumps(document))


def append_one(path, seq):
    """Runs in a process of its own."""
    return RunFolder(path).append([parsed(synthetic.record(seq, "cold", seq, 1.0 + seq))]).added


def test_ingest_is_idempotent_and_follows_the_order_of_the_run(fake_run):
    run = fake_run()
    records = run.records()
    assert [record.seq for record in records] == sorted(record.seq for record in records)
    assert len(records) == 29
    again = run.ingest()
    assert (again.added, again.known, again.rejected) == (0, 29, [])
    assert run.records() == records


def test_bad_records_are_set_aside_with_their_reasons_and_the_others_kept(fake_run):
    run = fake_run()
    incoming = run.incoming_path / "node1"
    (incoming / "000090-restore.json").write_text('{"schema_version": 1')
    (incoming / "000091-restore.json").write_text(json.dumps(synthetic.record(91, "cold", 9, 5.0) | {"bogus": 1}))
    (incoming / "000092-restore.json").write_text(json.dumps(synthetic.record(92, "cold", 9, 5.0, run_id="other")))
    (incoming / "000093-restore.json").write_text(json.dumps(synthetic.record(93, "cold", 9, 5.0, host="node2")))
    (incoming / "000094-cold.json").write_text(json.dumps(synthetic.record(94, "cold", 9, 5.0)))
    (incoming / "000095-cold.json").write_bytes(b"\xff\xfe")
    result = run.ingest()
    assert result.added == 1
    assert len(result.rejected) == 5
    for part in (
        "bogus: unknown key",
        "belongs to run other",
        "names host node2, but came from node1",
        "000095-cold.json is not a valid Record",
    ):
        assert any(part in reason for reason in result.rejected)
    assert (run.rejected_path / "node1" / "000090-restore.json").read_text() == '{"schema_version": 1'
    assert "unknown key" in (run.rejected_path / "node1" / "000091-restore.json.reasons.txt").read_text()


def test_a_line_separator_within_a_message_does_not_end_the_line(fake_run):
    """A server's log may hold U+2028 or U+0085, where Python ends a line of text and JSON does not."""
    run = fake_run()
    said = "it broke\u2028off\x85here"
    failed = synthetic.record(91, "cold", 9, 5.0, message=said)
    (run.incoming_path / "node1" / "000091-restore.json").write_text(json.dumps(failed), encoding="utf-8")
    assert run.ingest().rejected == []
    assert run.records()[-1].message == said


def test_records_that_are_not_text_are_named(fake_run):
    run = fake_run()
    run.records_path.write_bytes(b'{"schema_version": 1, "run_id": "\xcb"}\n')
    with pytest.raises(ReportError, match=r"records\.jsonl:1 is not a valid Record"):
        run.records()


def test_the_end_of_a_run_is_noted_and_nothing_else_changes(fake_run):
    run = fake_run(finished_at=None)
    before = json.loads(run.manifest_path.read_text())
    run.finish(datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC))
    assert json.loads(run.manifest_path.read_text()) == before | {"finished_at": "2026-01-02T03:04:05Z"}
    assert run.manifest().finished_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert stat.S_IMODE(run.manifest_path.stat().st_mode) == 0o600


def test_records_are_taken_in_without_what_only_reports_need(fake_run):
    run = fake_run()
    code = f"""
import sys
from gpuckpt_report.__main__ import main
assert main(["ingest", {str(run.path)!r}]) == 0
print(sorted({{"pandas", "sqlalchemy", "jinja2"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_lines_of_a_jsonl_file_are_judged_one_by_one(fake_run, tmp_path):
    run = fake_run([])
    lines = [json.dumps(synthetic.record(1, "cold", 1, 5.0)), "{}", json.dumps(synthetic.record(2, "cold", 2, 5.0))]
    samples = tmp_path / "samples.jsonl"
    samples.write_text("\n".join(lines) + "\n")
    result = run.ingest([samples])
    assert result.added == 2
    assert "samples.jsonl:2 is not a valid Record" in result.rejected[0]


def test_a_measurement_cannot_change_afterwards(fake_run):
    run = fake_run([synthetic.record(1, "cold", 1, 5.0)])
    result = run.append([parsed(synthetic.record(1, "cold", 1, 4.0))])
    assert "differs from the one already stored" in result.rejected[0]
    assert [record.t.T4 for record in run.records()] == [5.0]


def test_an_ok_record_without_the_metric_is_refused(fake_run):
    run = fake_run([])
    (run.incoming_path / "node1").mkdir(parents=True)
    document = synthetic.record(1, "cold", 1, 5.0, t={"T0": 0.0, "T1": 2.0})
    (run.incoming_path / "node1" / "000001-cold.json").write_text(json.dumps(document))
    assert "has no T4" in run.ingest().rejected[0]
    run.manifest_path.write_text(json.dumps(synthetic.manifest(metric="T1")))
    assert run.ingest().added == 1


def test_half_a_line_is_set_aside_and_does_not_swallow_the_next_record(fake_run):
    run = fake_run([synthetic.record(1, "cold", 1, 5.0)])
    with run.records_path.open("a") as file:
        file.write('{"schema_version": 1, "run_')
    assert run.append([parsed(synthetic.record(2, "cold", 2, 5.0))]).added == 1
    assert [record.seq for record in run.records()] == [1, 2]
    assert [path.read_text() for path in run.rejected_path.glob("torn*")] == ['{"schema_version": 1, "run_']


def test_writers_side_by_side_lose_nothing(fake_run):
    run = fake_run([])
    with ProcessPoolExecutor(4) as pool:
        assert sum(pool.map(append_one, [run.path] * 24, range(1, 25))) == 24
    assert sorted(record.seq for record in run.records()) == list(range(1, 25))


def test_a_damaged_line_is_named(fake_run):
    run = fake_run([synthetic.record(1, "cold", 1, 5.0)])
    with run.records_path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(ReportError, match=r"records.jsonl:2 is not a valid Record"):
        run.records()


def test_loading_twice_gives_the_same_database(fake_run):
    run = fake_run()
    engine = database.open_database("sqlite://")
    database.load(engine, run)
    first = {table.name: database.read(engine, table, "fake-run") for table in (database.RECORDS, *database.DETAILS)}
    database.load(engine, run)
    for table in (database.RECORDS, *database.DETAILS):
        assert database.read(engine, table, "fake-run") == first[table.name]
    assert len(first["records"]) == 29
    assert len(first["requests"]) == 5


def test_taking_records_in_loads_the_database_that_is_named_and_no_other(fake_run, tmp_path, monkeypatch):
    run = fake_run()
    assert cli.main(["ingest", str(run.path)]) == 0
    assert not list(run.path.parent.glob("*.sqlite"))
    monkeypatch.setenv(DATABASE_URL_VARIABLE, f"sqlite:///{tmp_path}/a.sqlite")
    assert cli.main(["ingest", str(run.path)]) == 0
    engine = database.open_database(f"sqlite:///{tmp_path}/a.sqlite")
    assert len(database.read(engine, database.RECORDS, "fake-run")) == 29


def test_records_of_hosts_that_arrive_in_turns_are_kept_in_order(fake_run):
    run = fake_run([synthetic.record(1, "cold", 1, 5.0, host=host) for host in ("b", "a")])
    for host in ("a", "b"):
        lines = [json.dumps(synthetic.record(seq, "cold", seq, 5.0, host=host)) for seq in (3, 2, 1)]
        (run.incoming_path / host / "000009-cold.jsonl").write_text("\n".join(lines) + "\n")
    result = run.ingest()
    assert (result.added, result.known, result.rejected) == (4, 4, [])
    assert [(record.host, record.seq) for record in run.records()] == [
        *(("a", 1), ("b", 1)),
        *(("a", 2), ("a", 3), ("b", 2), ("b", 3)),
    ]


def test_a_known_record_written_otherwise_is_the_same_one(fake_run):
    """What an older release stored lacks fields that have a default now."""
    run = fake_run([synthetic.record(1, "cold", 1, 5.0)])
    stored = json.loads(run.records_path.read_text())
    run.records_path.write_text(json.dumps({name: stored[name] for name in stored if name != "conditions"}) + "\n")
    result = run.ingest()
    assert (result.added, result.known, result.rejected) == (0, 1, [])


def test_a_bad_database_url_is_one_message():
    with pytest.raises(ReportError, match="cannot open the database"):
        database.open_database("sqlite:////nowhere/at/all/x.sqlite")
    with pytest.raises(ReportError, match="cannot open the database"):
        database.open_database("no-url")


def test_runs_are_found_by_id_path_and_latest(fake_run):
    older = fake_run(name="older", run_id="older", records=[], started_at="2026-01-01T00:00:00Z")
    newer = fake_run(name="newer", run_id="newer", records=[], started_at="2026-01-03T00:00:00Z")
    runs = older.path.parent
    assert find_run("older", runs).path == older.path
    assert find_run(str(newer.path), runs).path == newer.path
    assert find_run("latest", runs).path == newer.path
    with pytest.raises(ReportError, match="newer, older"):
        find_run("lost", runs)
    with pytest.raises(ReportError, match="no run in"):
        find_run("latest", runs / "empty")
