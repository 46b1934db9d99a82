# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden checkpoints of a node in its report."""

from __future__ import annotations

import synthetic

from gpuckpt_report.show import render, tables

ENTRY = {
    "name": "reference",
    "folder": "/var/lib/gpuckpt/golden/reference/one",
    "bytes": 283 << 20,
    "made_at": "2026-01-01T00:00:00+00:00",
    "misfits": [],
    "history": {"restored": 12, "last_restored_at": "2026-01-02T00:00:00+00:00", "cold": 1},
    "worth": {"saved_s": 1.5, "gpu_saved_s": 0.0, "made_s": 4.25, "break_even": 3},
}


def test_a_report_has_them_where_there_are_any(fake_run, analyse):
    run = fake_run(hosts={synthetic.HOST: {"kernel": "6.0-fake", "golden": [ENTRY]}})
    render.write(run, analyse(run))
    for name in ("report.md", "report.html"):
        text = (run.path / name).read_text()
        assert "Golden checkpoints on the node" in text
        assert "/var/lib/gpuckpt/golden/reference/one" in text


def test_a_row_tells_where_how_large_how_old_and_what_it_saves():
    table = tables.golden([ENTRY, {**ENTRY, "name": "old", "misfits": ["kernel was 5, is 6"], "worth": None}])
    assert table is not None
    first, second = (dict(zip(table.headings, row, strict=True)) for row in table.rows)
    assert (first["MiB"], first["fits"], first["restores"], first["pays after starts"]) == ("283", "yes", "12", "3")
    assert (first["saved a start s"], first["last restored"]) == ("1.5", "2026-01-02T00:00:00+00:00")
    assert (second["fits"], second["saved a start s"]) == ("no", "–")


def test_a_run_without_any_or_with_something_else_has_no_table():
    for found in (None, [], "text", [3], {}):
        assert tables.golden(found) is None
