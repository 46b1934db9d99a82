# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import csv
import io
import json
import re
import stat
import sys

import pandas as pd
import pytest
import synthetic
from project import ROOT
from prometheus_client import parser as prometheus_text
from prometheus_client.openmetrics import parser as openmetrics_text

from gpuckpt_report import __main__ as cli
from gpuckpt_report.analysis import stats
from gpuckpt_report.export import openmetrics, parquet

PUBLISHED = ROOT / "reports" / "published" / "h200-vllm"
PAGE = ROOT / "docs" / "exporting.md"


@pytest.fixture
def export(capfdbinary):
    """A function that runs `gpuckpt export` on a run's folder, and returns exit status and what it printed."""

    def call(run, *options):
        status = cli.main(["export", str(run), *options])
        printed = capfdbinary.readouterr()
        return status, printed.out.decode(), printed.err.decode()

    return call


def samples(families):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def of_lane(families, name, lane):
    found = [s for family in families for s in family.samples if s.name == name and s.labels.get("lane") == lane]
    assert len(found) == 1
    return found[0]


def test_openmetrics_is_what_its_parser_reads_with_units_and_help(export):
    status, text, _ = export(PUBLISHED, "--format", "openmetrics")
    assert status == 0
    assert text.endswith("# EOF\n")
    families = list(openmetrics_text.text_string_to_metric_families(text))
    assert all(family.type == "gauge" and family.documentation for family in families)
    for family in families:
        unit = re.search(r"_(seconds|bytes)$", family.name)
        assert family.unit == (unit[1] if unit else "")
    assert not any(sample.timestamp for family in families for sample in family.samples)


def test_the_figures_are_those_of_the_records(export):
    _, text, _ = export(PUBLISHED, "--format", "openmetrics")
    families = list(openmetrics_text.text_string_to_metric_families(text))
    records = [json.loads(line) for line in (PUBLISHED / "records.jsonl").read_text().splitlines()]
    times = [
        record["t"]["T4"]
        for record in records
        if record["lane"] == "staged-best"
        and record["kind"] == "restore"
        and not record["warmup"]
        and record["status"] == "ok"
    ]
    middle = of_lane(families, "gpuckpt_lane_median_seconds", "staged-best")
    assert middle.value == pytest.approx(stats.median(times))
    assert middle.labels == {
        "run": "h200-vllm",
        "host": "localhost",
        "lane": "staged-best",
        "build": "patched",
        "runtime": "process",
        "moment": "T4",
    }
    interval = stats.median_interval(times)
    for end in ("low", "high"):
        found = of_lane(families, f"gpuckpt_lane_interval_{end}_seconds", "staged-best").value
        assert found == pytest.approx(getattr(interval, end))
    assert of_lane(families, "gpuckpt_lane_good_records", "staged-best").value == len(times)


def test_the_older_text_format_reads_the_same_samples(export):
    _, text, _ = export(PUBLISHED, "--format", "openmetrics")
    older = samples(prometheus_text.text_string_to_metric_families(text))
    assert older == samples(openmetrics_text.text_string_to_metric_families(text))
    # types that the older format does not know would be refused by node_exporter
    assert set(re.findall(r"^# TYPE \S+ (\S+)$", text, re.M)) == {"gauge"}


def test_timestamps_are_the_end_of_the_run_and_only_on_demand(export):
    _, text, _ = export(PUBLISHED, "--format", "openmetrics", "--timestamps")
    families = list(openmetrics_text.text_string_to_metric_families(text))
    finish = next(family for family in families if family.name == "gpuckpt_run_finish_time_seconds").samples[0]
    assert {float(sample.timestamp) for family in families for sample in family.samples} == {finish.value}
    status, _, complaint = export(PUBLISHED, "--format", "csv", "--timestamps")
    assert (status, complaint) == (cli.EXIT_BAD_INPUT, "gpuckpt: --timestamps belongs to --format openmetrics\n")


def test_failures_and_what_users_wrote_survive_the_format(fake_run, analyse):
    run = fake_run(server={"name": 'a "server"\\', "model": "two\nlines"})
    families = list(openmetrics_text.text_string_to_metric_families(openmetrics.text(analyse(run)).decode()))
    assert of_lane(families, "gpuckpt_lane_failed_records", "podman-mapped").value == 1
    [info] = next(family for family in families if family.name == "gpuckpt_run_information").samples
    assert (info.labels["server"], info.labels["model"], info.labels["fake"]) == ('a "server"\\', "two\nlines", "true")


def test_a_lane_without_a_good_record_has_no_median_and_its_failures(fake_run, analyse):
    records = [synthetic.failed(number, "podman-mapped", number) for number in (1, 2)]
    families = list(
        openmetrics_text.text_string_to_metric_families(openmetrics.text(analyse(fake_run(records))).decode())
    )
    assert "gpuckpt_lane_median_seconds" not in {family.name for family in families}
    assert of_lane(families, "gpuckpt_lane_failed_records", "podman-mapped").value == 2


def test_a_file_is_replaced_as_a_whole(fake_run, export, tmp_path):
    target = tmp_path / "gpuckpt.prom"
    target.write_text("old")
    reader = target.open()
    assert export(fake_run().path, "--format", "openmetrics", "--output", str(target))[:2] == (0, "")
    assert reader.read() == "old"
    assert target.read_text().endswith("# EOF\n")
    assert [path.name for path in tmp_path.glob("*.prom")] == ["gpuckpt.prom"]
    assert list(tmp_path.glob(".*.partial")) == []
    # node_exporter runs as another user
    assert stat.S_IMODE(target.stat().st_mode) & 0o044


def test_a_folder_that_is_missing_is_named(fake_run, export, tmp_path):
    status, _, complaint = export(fake_run().path, "--output", str(tmp_path / "none" / "file"))
    assert status == cli.EXIT_BAD_INPUT
    assert "cannot be written: No such file or directory" in complaint


def test_parquet_read_back_with_pandas(fake_run, export, tmp_path):
    run = fake_run()
    target = tmp_path / "records.parquet"
    assert export(run.path, "--format", "parquet", "--output", str(target))[0] == 0
    frame = pd.read_parquet(target)
    records = run.records()
    assert len(frame) == len(records)
    assert list(frame["lane"]) == [record.lane for record in records]
    # NaN is what pandas makes of a missing number
    assert [None if pd.isna(value) else value for value in frame["T4_s"]] == [record.t.T4 for record in records]
    assert frame["warmup"].dtype == bool
    assert str(frame["started_at"].dtype) == "datetime64[us, UTC]"
    assert frame["started_at"][0] == records[0].started_at
    good = frame[
        (frame["status"] == "ok") & ~frame["warmup"] & (frame["lane"] == "podman-stock") & (frame["kind"] == "restore")
    ]
    assert good["phase.criu_s"].median() == pytest.approx((0.7 * good["T4_s"] - 0.1).median())


def test_parquet_columns_have_types_and_units(fake_run):
    import pyarrow.parquet

    run = fake_run()
    content = parquet.content(run.manifest(), run.records())
    schema = pyarrow.parquet.read_schema(io.BytesIO(content))
    units = {name: schema.field(name).metadata[b"unit"].decode() for name in schema.names}
    assert all(units[name] == "s" for name in units if name.endswith("_s"))
    assert all(units[name] == "B" for name in units if name.endswith("_bytes"))
    assert str(schema.field("gpu_bytes").type) == "int64"
    assert str(schema.field("T4_s").type) == "double"
    assert json.loads(schema.metadata[b"gpuckpt.manifest"])["run_id"] == "fake-run"


def test_parquet_and_csv_say_the_same(export, tmp_path):
    target = tmp_path / "records.parquet"
    export(PUBLISHED, "--format", "parquet", "--output", str(target))
    _, text, _ = export(PUBLISHED, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    frame = pd.read_parquet(target)
    assert set(rows[0]) <= set(frame.columns)
    for name in ("T4_s", "gpu_bytes", "phase.read_images_s"):
        numbers = [float(row[name]) if row[name] else None for row in rows]
        assert [None if pd.isna(value) else float(value) for value in frame[name]] == numbers


def test_parquet_without_pyarrow_is_one_line(fake_run, export, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, complaint = export(fake_run().path, "--format", "parquet", "--output", str(tmp_path / "x"))
    assert status == cli.EXIT_BAD_INPUT
    assert complaint.count("\n") == 1
    assert "requirements/parquet.txt" in complaint
    assert not (tmp_path / "x").exists()
    assert (ROOT / "requirements" / "parquet.txt").is_file()


def test_parquet_is_not_printed(fake_run, export):
    status, printed, complaint = export(fake_run().path, "--format", "parquet")
    assert (status, printed) == (cli.EXIT_BAD_INPUT, "")
    assert "--output FILE" in complaint


def test_json_and_json_lines_hold_every_record(fake_run, export):
    run = fake_run()
    _, text, _ = export(run.path, "--format", "json")
    _, lines, _ = export(run.path, "--format", "jsonl")
    assert json.loads(text) == [json.loads(line) for line in lines.splitlines()]
    assert len(json.loads(text)) == len(run.records())


def example(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def test_the_example_for_pandas_runs(tmp_path, monkeypatch, capsys):
    target = str(tmp_path / "records.parquet")
    assert cli.main(["export", str(PUBLISHED), "--format", "parquet", "--output", target]) == 0
    monkeypatch.chdir(tmp_path)
    [code] = example("python")
    exec(compile(code, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"^staged-best +0\.74", printed, re.M)


def test_metrics_of_the_page_are_exported(export):
    _, text, _ = export(PUBLISHED, "--format", "openmetrics")
    exported = {family.name for family in openmetrics_text.text_string_to_metric_families(text)}
    named = set(re.findall(r"\bgpuckpt_[a-z0-9_]+\b", PAGE.read_text(encoding="utf-8"))) - {"gpuckpt_report"}
    assert named
    # a run of which the machine's state is known has this one, too
    assert named - exported <= {"gpuckpt_host_calm"}
