# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpuckpt_report.analysis import run as analysis
from gpuckpt_report.records.store import RunFolder

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def fake_run(tmp_path):
    """A function that writes a synthetic run, ingests it, and returns its folder."""
    import synthetic

    def make(records=None, name="fake-run", **manifest_changes):
        records = synthetic.run_records() if records is None else records
        run = RunFolder(synthetic.write_run(tmp_path / "runs" / name, records, **manifest_changes))
        assert run.ingest().rejected == []
        return run

    return make


@pytest.fixture
def analyse():
    """A function that computes the figures of a run."""
    return analysis.analyse
