# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest

from gpuckpt_report import __main__ as cli


def gpu(variant, index, seconds, driver=None, **changes):
    """As gpu_bench.py writes a restore."""
    spans = [] if driver is None else [{"name": "cuda-restore", "start": 10.0, "end": 10.0 + driver}]
    record = {"kind": "restore", "gib": 8.0, "variant": variant, "round": index, "warmup": False, "ok": True}
    return record | {"criu_s": seconds, "spans": spans} | changes


def cpu(variant, index, seconds, **changes):
    """As bench_restore.py writes one."""
    record = {"kind": "private", "gib": 4.0, "cache": "warm", "variant": variant, "iteration": index, "warmup": False}
    return record | {"restore_s": seconds, "all_memory_read_s": seconds + 1, "correct": True} | changes


def tables(tmp_path, capsys, *files):
    """Exit status, table rows by first cell, and standard error."""
    paths = []
    for number, records in enumerate(files):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        paths.append(str(path))
    status = cli.main(["native-tables", *paths])
    shown = capsys.readouterr()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.out.splitlines() if line[:1] == "|"]
    return status, {row[0]: row[1:] for row in rows}, shown


def test_ratios_are_paired_by_round_and_run(tmp_path, capsys):
    """The second run was on a machine twice as slow: what counts is the ratio within each round."""
    first = [{"kind": "manifest"}]
    first += [sample for index in range(1, 6) for sample in (gpu("stock", index, 4.0), gpu("all", index, 1.0, 0.9))]
    second = [{"kind": "manifest"}]
    second += [sample for index in range(1, 6) for sample in (gpu("stock", index, 8.0), gpu("all", index, 2.0, 1.8))]
    status, rows, shown = tables(tmp_path, capsys, first, second)
    assert status == 0
    assert shown.out.startswith("8 GiB on the GPU:")
    assert list(rows)[2:] == ["stock", "all"]
    assert rows["stock"][:5] == ["6.00", "4.00 … 8.00", "10", "0", "1"]
    assert rows["all"] == ["1.50", "1.00 … 2.00", "10", "0", "4.00×", "4.00× … 4.00×", "1.35", "0.150"]


def test_failures_are_counted_and_not_measured(tmp_path, capsys):
    samples = [gpu("stock", index, 4.0) for index in range(1, 4)]
    samples += [gpu("all", 1, 1.0, 0.5), gpu("all", 2, 1.0, 0.5), gpu("all", 3, 0.1, ok=False)]
    samples += [gpu("threads", 1, 2.0, ok=False)]
    _, rows, _ = tables(tmp_path, capsys, samples)
    assert rows["all"][:4] == ["1.00", "1.00 … 1.00", "2", "1"]
    assert rows["threads"] == ["–", "–", "0", "1", "–", "–", "–", "–"]


def test_warm_up_dumps_and_leak_checks_are_left_out(tmp_path, capsys):
    samples = [cpu("stock", 1, 2.0), cpu("stock", 0, 9.0, warmup=True), gpu("all", 1, 1.0, leak_check=True)]
    samples.append({"kind": "dump", "gib": 8.0, "variant": "all", "criu_s": 5.0, "warmup": False})
    _, rows, shown = tables(tmp_path, capsys, samples)
    assert shown.out.startswith("4 GiB, private, warm:")
    assert rows["stock"] == ["2.00", "2.00 … 2.00", "1", "0", "1", "–", "3.00"]
    assert "GPU" not in shown.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", "0.jsonl:1: no sample of a native bench: KeyError('gib')"),
        ("[]\n", "0.jsonl:1: no JSON object"),
        ("{\n", "0.jsonl:1: no JSON: "),
        ('{"kind": "manifest"}\n', "no restores in "),
    ],
)
def test_bad_samples_are_named(tmp_path, capsys, text, message):
    path = tmp_path / "0.jsonl"
    path.write_text(text)
    assert cli.main(["native-tables", str(path)]) == cli.EXIT_BAD_INPUT
    assert message in capsys.readouterr().err
    assert cli.main(["native-tables", str(tmp_path / "none.jsonl")]) == cli.EXIT_BAD_INPUT
    assert "none.jsonl cannot be read" in capsys.readouterr().err
