# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest
import synthetic

from gpuckpt_report import __main__ as cli
from gpuckpt_report.store import RunFolder


def sample(seq, lane, iteration, seconds, **changes):
    """A record of a native benchmark: no server, so no token."""
    moments = {"t": {"T0": 0.0, "T1": seconds}, "phases": {}, "kind": "restore", "run_id": "native-1"}
    return synthetic.record(seq, lane, iteration, 1.0) | moments | changes


def write(path, documents):
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return str(path)


def test_samples_become_a_run_with_a_report(tmp_path, capsys):
    mapped = {"switches": {"CRIU_MAPPED_RESTORE": 1}, "build": {"name": "patched"}}
    samples = [sample(number, "stock", number, 1.6 + number / 100) for number in range(1, 4)]
    samples += [sample(number + 10, "mapped", number, 0.04, **mapped) for number in range(1, 5)]
    samples += [sample(30, "mapped", 1, 5.0, warmup=True, **mapped)]
    host = tmp_path / "host.json"
    host.write_text('{"kernel": "6.0-fake"}')
    runs = ["--runs", str(tmp_path / "runs")]
    arguments = [*runs, "create", write(tmp_path / "samples.jsonl", samples), "--provenance", f"node1={host}"]
    assert cli.main(arguments) == 0
    run = RunFolder(tmp_path / "runs" / "native-1")
    manifest = run.manifest()
    assert (manifest.metric, manifest.iterations, manifest.baseline, manifest.fake) == ("T1", 3, "stock", True)
    assert [(lane.name, lane.build) for lane in manifest.lanes] == [("stock", "current"), ("mapped", "patched")]
    assert manifest.hosts == {"node1": {"kernel": "6.0-fake"}}
    assert len(run.records()) == 8
    assert cli.main([*runs, "summary", "native-1"]) == 0
    assert (
        "mapped: end of the restore command 40.0 ms (median, n = 4), 40.5× faster than stock" in capsys.readouterr().out
    )
    assert cli.main(arguments) == cli.EXIT_BAD_INPUT
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([sample(1, "stock", 1, 1.0), {}], "samples.jsonl:2 is not a valid Record"),
        ([sample(1, "stock", 1, 1.0), sample(2, "stock", 2, 1.0, run_id="other")], "of several runs: native-1, other"),
        ([sample(1, "stock", 1, 1.0, build={"name": "mine"})], "lane stock:\n  build: Input should be 'stock'"),
        ([], "holds no valid record of kind cold or restore"),
    ],
)
def test_bad_samples_make_no_run(tmp_path, capsys, documents, message):
    runs = tmp_path / "runs"
    assert cli.main(["--runs", str(runs), "create", write(tmp_path / "samples.jsonl", documents)]) == cli.EXIT_BAD_INPUT
    assert message in capsys.readouterr().err
    assert not runs.exists()
