# SPDX-License-Identifier: GPL-3.0-or-later
"""ckpt_floor run as Ansible runs it: the store is real, the driver is the fake of tests/native/cuda."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from ansible.module_utils.ckpt.measure import floor
from project import ROOT

from gpuckpt_report.analysis import run as analysis
from gpuckpt_report.records import schema

CUDA_TESTS = ROOT / "tests" / "native" / "cuda"
RUN_MODULE = """
import json, runpy, sys
import ansible.module_utils
from ansible.module_utils.testing import patch_module_args
ansible.module_utils.__path__.append(sys.argv[1])
from ansible.module_utils.ckpt.safety import claim
# this machine may be in use by a benchmark, which these tests do not disturb
claim.CLAIM_FILE = sys.argv[3]
with patch_module_args(json.load(sys.stdin)):
    runpy.run_path(sys.argv[2], run_name="__main__")
"""
IDENTITY = {"run_id": "r1", "host": "node1", "seq": 1, "lane": "node"}
HANG = "600000"


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory):
    """Folder of the fake libcuda.so.1."""
    if shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("needs make and a C compiler for the fake driver")
    folder = tmp_path_factory.mktemp("driver")
    target = folder / "libcuda.so.1"
    subprocess.run(["make", "-s", "-C", CUDA_TESTS, f"O={folder}", str(target)], check=True, timeout=60)
    return folder


@pytest.fixture
def call(tmp_path, fake_driver):
    """Runs the module on a store in a temporary folder; returns its result."""
    (tmp_path / "store").mkdir()
    (tmp_path / "gpu").mkdir()

    def run(environment=None, **options):
        fake = {"LD_LIBRARY_PATH": str(fake_driver), "GPUCKPT_FAKE_DIR": str(tmp_path / "gpu"), **(environment or {})}
        paths = [ROOT / "module_utils", ROOT / "library/ckpt_floor.py", tmp_path / "claim"]
        script = [sys.executable, "-c", RUN_MODULE, *map(str, paths)]
        options = {"store_path": str(tmp_path / "store"), "size_mib": 8, "record": IDENTITY, **options}
        done = subprocess.run(
            script, input=json.dumps(options), capture_output=True, text=True, timeout=60, env={**os.environ, **fake}
        )
        assert done.stdout.strip(), done.stderr
        return json.loads(done.stdout)

    return run


def left(tmp_path):
    return sorted(path.name for folder in ("store", "gpu") for path in (tmp_path / folder).iterdir())


def test_the_library_is_found_where_the_environment_says(call, fake_driver):
    result = call({"LD_LIBRARY_PATH": "", "GPUCKPT_LIBCUDA": str(fake_driver / "libcuda.so.1")})
    assert result["reason"] is None


def test_a_floor_has_every_quantity_and_is_a_valid_record(call, tmp_path):
    result = call(record_path=str(tmp_path / "records" / "floor.json"))
    assert (result["changed"], result["reason"]) == (False, None)
    record = schema.Record.model_validate_json((tmp_path / "records" / "floor.json").read_text())
    assert (record.kind, record.status, record.build, record.source) == ("floor", "ok", None, None)
    assert {name: quantity.unit for name, quantity in record.floor.items()} == {
        "context": "s",
        "copy_h2d": "B/s",
        "copy_h2d_pageable": "B/s",
        "store_read_1": "B/s",
        "store_read_8": "B/s",
    }
    assert all(quantity.value > 0 for quantity in record.floor.values())
    assert list(record.phases) == ["contexts", "copies", "store", "unattributed"]
    assert 0 < record.phases["store"].end <= record.t.T1
    # the fake keeps "GPU memory" in files of a process's number, as long as somebody looks: those of the dead are no use
    assert [name for name in left(tmp_path) if not name.startswith(("memory.", "context."))] == []


def test_the_names_are_those_of_the_report():
    assert (floor.CONTEXT_COST, floor.COPY_CEILING) == (analysis.CONTEXT_COST, analysis.COPY_CEILING)


def test_the_context_cost_is_the_median_of_fresh_processes(call):
    # 200 ms in cuInit and 100 ms in the context, each time anew
    slow = call({"GPUCKPT_FAKE_FAULTS": "init:*:delay=200 retain:*:delay=100"})
    assert 0.3 <= slow["record"]["floor"]["context"]["value"] < 0.6
    assert slow["record"]["phases"]["contexts"]["end"] >= 0.9


def test_rates_are_bytes_a_second(call):
    # 8 MiB in 100 ms at best
    rates = call({"GPUCKPT_FAKE_FAULTS": "copy:*:delay=100"})["record"]["floor"]
    for name in ("copy_h2d", "copy_h2d_pageable"):
        assert 8 * 2**20 / 0.2 < rates[name]["value"] <= 8 * 2**20 / 0.1


def test_without_a_gpu_the_store_alone_is_measured(call):
    result = call({"LD_LIBRARY_PATH": ""}, gpu=False)
    assert sorted(result["record"]["floor"]) == ["store_read_1", "store_read_8"]


def test_without_a_store_the_gpu_alone_is_measured(call):
    assert sorted(call(store_path=None)["record"]["floor"]) == ["context", "copy_h2d", "copy_h2d_pageable"]


@pytest.mark.parametrize("stage", ["init", "retain", "copy"])
def test_a_hang_ends_at_the_limit_and_is_a_failed_record(call, stage):
    started = time.monotonic()
    result = call({"GPUCKPT_FAKE_FAULTS": f"{stage}:*:delay={HANG}"}, limit_s=0.5)
    assert time.monotonic() - started < 20
    assert "failed" not in result
    assert result["reason"] == "timeout"
    assert "did not end within 0.5 s and was killed" in result["msg"]
    record = schema.Record.model_validate_json(json.dumps(result["record"]))
    assert (record.status, record.floor) == ("failed", {})


@pytest.mark.parametrize(
    ("environment", "reason", "words"),
    [
        ({"GPUCKPT_FAKE_FAULTS": "init:*:100"}, "cuda_not_running", "cuInit failed with CUDA_ERROR_NO_DEVICE"),
        ({"GPUCKPT_FAKE_FAULTS": "retain:*:999"}, "cuda_not_running", "cuDevicePrimaryCtxRetain failed with error 999"),
        ({"GPUCKPT_FAKE_TOTAL_MB": "4"}, "gpu_memory_short", "stop what else holds its memory"),
        ({"LD_LIBRARY_PATH": ""}, "cuda_not_running", "libcuda.so.1 cannot be loaded"),
    ],
)
def test_an_error_of_the_driver_is_a_failed_record_with_its_mend(call, environment, reason, words):
    result = call(environment)
    assert (result["reason"], result["record"]["status"], result["record"]["floor"]) == (reason, "failed", {})
    assert result["changed"] is False
    assert words in result["msg"]
    schema.Record.model_validate_json(json.dumps(result["record"]))


def test_a_failure_fails_the_task_where_nothing_is_recorded(call):
    assert call({"GPUCKPT_FAKE_FAULTS": "init:*:100"}, record=None)["failed"] is True
    assert call({"GPUCKPT_FAKE_FAULTS": "init:*:100"}, fail_on_error=True)["failed"] is True


def test_a_process_that_dies_is_told():
    with pytest.raises(floor.CkptError, match="died without a word"):
        floor._in_child(lambda: os.kill(os.getpid(), 9), 10)


def test_check_mode_measures_nothing(call, tmp_path):
    result = call(_ansible_check_mode=True, record_path=str(tmp_path / "floor.json"))
    assert (result["changed"], result["record"]) == (False, None)
    assert not (tmp_path / "floor.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size_mib": 0}, "size_mib must be 1 or more"),
        ({"gpu": False, "store_path": None}, "nothing to measure"),
        ({"gpu": False, "store_path": "/no/such/store"}, "run provision.yml first"),
        ({"gpu": False, "size_mib": 1 << 30}, "MiB are available"),
    ],
)
def test_what_cannot_be_measured_is_said(call, options, words):
    result = call(**options)
    assert result["reason"] == "bad_input"
    assert words in result["msg"]


def test_a_store_without_room_is_left_out(monkeypatch, tmp_path):
    space = os.statvfs(tmp_path)
    monkeypatch.setattr(floor, "_require_memory", lambda size: None)
    size_mib = space.f_bavail * space.f_frsize // 2**20 + 1
    options = {"gpu": False, "store_path": str(tmp_path), "size_mib": size_mib, "limit_s": 60.0}
    with pytest.raises(floor.CkptError, match="no room") as caught:
        floor.run(*floor.begin("floor", options))
    assert caught.value.reason == "store_full"
