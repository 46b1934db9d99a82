# SPDX-License-Identifier: GPL-3.0-or-later
"""A benchmark from end to end on this machine: real containers, real CRIU, real records."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from plays import ANSIBLE_PLAYBOOK, ROOT, STORE, WEIGHTS_MIB, Played, mounts, play, records, run

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("provisioned")]

GOOD_LANES = {"cold", "podman-stock", "podman-mapped", "podman-tar-zst", "process-stock", "process-mapped"}
LANES: list[dict[str, Any]] = [
    {"name": "cold", "start": "cold", "runtime": "podman"},
    {"name": "podman-stock", "start": "restore", "runtime": "podman", "build": "stock", "flags": ["--keep"]},
    {
        "name": "podman-mapped",
        "start": "restore",
        "runtime": "podman",
        "build": "patched",
        "flags": ["--keep"],
        "switches": {"CRIU_MAPPED_RESTORE": 1, "CRIU_MAPPED_SCOPE": "all"},
    },
    # finished when the run is continued, and nothing restores its checkpoint any more
    {
        "name": "podman-tar-zst",
        "start": "restore",
        "runtime": "podman",
        "build": "stock",
        "source": "tar.zst",
        "iterations": 1,
    },
    {"name": "process-stock", "start": "restore", "runtime": "process", "build": "stock"},
    {
        "name": "process-mapped",
        "start": "restore",
        "runtime": "process",
        "build": "patched",
        "switches": {"CRIU_MAPPED_RESTORE": 1, "CRIU_MAPPED_SCOPE": "all"},
    },
    # made to fail: no such flag
    {"name": "broken", "start": "restore", "runtime": "podman", "build": "stock", "flags": ["--no-such-flag"]},
]
WARMUP_REQUESTS = 3
HEALTH = "http://127.0.0.1:18080/health"
# A run's records stay on the node, so each needs a name of its own.
RUN_ID = f"integration-{int(time.time())}"


SETTINGS = {
    "gpuckpt_run_id": RUN_ID,
    "gpuckpt_weights_mib": WEIGHTS_MIB,
    "gpuckpt_lanes": LANES,
    "gpuckpt_warmup_rounds": 0,
    "gpuckpt_warmup_requests": WARMUP_REQUESTS,
}


def bench(results: Path, check: bool = True, **variables: Any) -> Played:
    settings = {**SETTINGS, "gpuckpt_results_dir": str(results), **variables}
    return play("bench.yml", "--limit", "gpu-nodes", check=check, **settings)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("runs")
    shutil.rmtree(f"/var/lib/gpuckpt/runs/{RUN_ID}", ignore_errors=True)


def traces() -> set[str]:
    """Containers, mounts and checkpoints that a run leaves if it does not clean up."""
    containers = run("podman", "ps", "--all", "--format", "{{.Names}}").split()
    return {*containers, *mounts(), *(str(path) for path in Path(STORE).iterdir())}


@pytest.fixture(scope="module")
def before_the_run(provisioned: object) -> set[str]:
    return traces()


@pytest.fixture(scope="module")
def first_call(results: Path, before_the_run: set[str]) -> Played:
    """The run's first iteration, its checkpoints kept. One lane is made to fail, and so the play does."""
    return bench(results, check=False, gpuckpt_iterations=1, gpuckpt_keep_checkpoints=True)


@pytest.fixture(scope="module")
def first_part(results: Path, first_call: Played) -> list[dict[str, Any]]:
    return records(results / RUN_ID)


@pytest.fixture(scope="module")
def whole(results: Path, first_part: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The run, continued to its second iteration."""
    bench(results, check=False, gpuckpt_iterations=2, gpuckpt_continue=True)
    return records(results / RUN_ID)


def measured(found: list[dict[str, Any]], lanes: set[str]) -> list[dict[str, Any]]:
    """Records of lanes that count: those of the schedule."""
    starts = [record for record in found if record["kind"] in ("cold", "restore") and not record["bill"]]
    return [record for record in starts if record["lane"] in lanes]


def test_each_good_lane_is_measured_once_an_iteration_and_is_ok(whole: list[dict[str, Any]]) -> None:
    good = measured(whole, GOOD_LANES)
    assert Counter(record["lane"] for record in good) == dict.fromkeys(GOOD_LANES, 2) | {"podman-tar-zst": 1}
    assert [record["message"] for record in good if record["status"] != "ok"] == []


def test_each_outcome_is_told_when_it_is_known(first_call: Played) -> None:
    assert "process-mapped, iteration 1: first token after 0." in first_call.output
    assert "broken, iteration 1: FAILED (" in first_call.output


def test_a_lane_without_a_good_record_fails_the_play_once_the_report_is_made(first_call: Played) -> None:
    assert first_call.status == 2
    said = " ".join(first_call.output.split())
    assert "localhost: no good record of lane broken (broken failed 1 of 1). The report tells why." in said
    assert "report: " in said


def test_every_restore_passed_the_truth_gate(whole: list[dict[str, Any]]) -> None:
    for record in measured(whole, GOOD_LANES - {"cold"}):
        assert record["canary"]["equal"] is True
        assert record["canary"]["tokens"]
        assert record["counter"]["after"] >= record["counter"]["before"] > 0
        assert record["checks"]["exit_zero"] is True
        assert record["checks"]["pids_alive"] is True


def test_the_moments_come_in_order(whole: list[dict[str, Any]]) -> None:
    for record in measured(whole, GOOD_LANES):
        moments = record["t"]
        assert 0 == moments["T0"] < moments["T1"]
        assert moments["T0"] < moments["T3"] <= moments["T4"] <= moments["T5"]


def test_the_checkpoints_hold_the_weights(whole: list[dict[str, Any]]) -> None:
    checkpoints = [record for record in whole if record["kind"] == "checkpoint"]
    assert {record["status"] for record in checkpoints} == {"ok"}
    for record in checkpoints:
        size = record["bytes"]["archive"] or record["bytes"]["images_total"]
        assert size > WEIGHTS_MIB << 20


def test_the_warm_up_requests_are_recorded(whole: list[dict[str, Any]]) -> None:
    probes = [record for record in whole if record["kind"] == "probe"]
    assert probes
    for record in probes:
        assert len(record["requests"]) == WARMUP_REQUESTS
        assert all(0 < request["ttft_s"] <= request["duration_s"] for request in record["requests"])


def test_the_first_start_of_each_server_is_recorded_outside_the_schedule(first_part: list[dict[str, Any]]) -> None:
    colds = [record for record in first_part if record["kind"] == "cold"]
    starts = [record for record in colds if record["lane"] != "cold"]
    probed = {record["lane"] for record in first_part if record["kind"] == "probe"}
    assert {record["lane"] for record in starts} == probed
    assert all(record["warmup"] and record["status"] == "ok" and record["t"]["T4"] > 0 for record in starts)
    entries = [record for record in first_part if record["kind"] in ("cold", "restore") and record not in starts]
    assert min(record["seq"] for record in starts) > max(record["seq"] for record in entries)


def test_a_failing_lane_stays_in_the_statistics(whole: list[dict[str, Any]], results: Path) -> None:
    broken = measured(whole, {"broken"})
    assert len(broken) == 2
    assert {record["status"] for record in broken} == {"failed"}
    assert all(record["reason"] and record["message"] for record in broken)
    assert "broken" in (results / RUN_ID / "report.md").read_text(encoding="utf-8")


def test_a_continued_run_keeps_its_records_and_its_checkpoints(
    first_part: list[dict[str, Any]], whole: list[dict[str, Any]]
) -> None:
    assert whole[: len(first_part)] == first_part
    assert all(record["kind"] in ("cold", "restore") for record in whole[len(first_part) :])
    keys = [(record["host"], record["kind"], record["seq"]) for record in whole]
    assert len(set(keys)) == len(keys)


def test_the_manifest_tells_what_ran(whole: list[dict[str, Any]], results: Path) -> None:
    manifest = json.loads((results / RUN_ID / "manifest.json").read_text(encoding="utf-8"))
    assert [lane["name"] for lane in manifest["lanes"]] == [lane["name"] for lane in LANES]
    assert manifest["hosts"]["localhost"]["host"]
    assert manifest["finished_at"] > manifest["started_at"]


def test_the_report_is_made_and_can_be_made_again(whole: list[dict[str, Any]], results: Path) -> None:
    again = play("report.yml", gpuckpt_results_dir=str(results))
    assert "process-mapped" in again.output
    for name in ("report.html", "report.md", "records.csv"):
        assert (results / RUN_ID / name).stat().st_size > 0


def test_nothing_is_left_on_the_node(before_the_run: set[str], whole: list[dict[str, Any]]) -> None:
    assert traces() <= before_the_run
    assert not Path("/run/gpuckpt/criu.env").exists()


def test_a_run_is_not_overwritten(whole: list[dict[str, Any]], results: Path) -> None:
    refused = bench(results, check=False)
    assert refused.status != 0
    assert f"the run {RUN_ID} is there already" in refused.output
    assert records(results / RUN_ID) == whole


def test_a_run_is_not_continued_with_another_model(whole: list[dict[str, Any]], results: Path) -> None:
    refused = bench(results, check=False, gpuckpt_continue=True, inference_server_model="another")
    assert refused.status != 0
    assert f"the run {RUN_ID} measures gpuckpt-reference, not another" in " ".join(refused.output.split())
    assert records(results / RUN_ID) == whole


def test_records_of_an_earlier_run_of_that_name_are_not_taken_in(
    whole: list[dict[str, Any]], tmp_path: Path, before_the_run: set[str]
) -> None:
    refused = bench(tmp_path, check=False)
    assert refused.status != 0
    said = " ".join(refused.output.split())
    assert f"records of an earlier run {RUN_ID} lie in /var/lib/gpuckpt/runs/{RUN_ID} on localhost" in said
    assert "choose another gpuckpt_run_id" in said
    assert not (tmp_path / RUN_ID).exists()
    assert traces() <= before_the_run


def test_an_interrupted_run_stops_its_server_keeps_its_records_and_can_be_continued(
    tmp_path: Path, before_the_run: set[str]
) -> None:
    run_id = f"{RUN_ID}-interrupted"
    lanes = [lane for lane in LANES if lane["name"] == "podman-stock"]
    settings = {"gpuckpt_run_id": run_id, "gpuckpt_lanes": lanes, "gpuckpt_iterations": 50}
    try:
        said = interrupted_bench({**SETTINGS, **settings, "gpuckpt_results_dir": str(tmp_path)}, "[localhost 2/50]")
        assert "servers are stopped, records are kept" in said
        measured_before = measured(records(tmp_path / run_id), {"podman-stock"})
        assert 2 <= len(measured_before) < 50
        assert json.loads((tmp_path / run_id / "manifest.json").read_text(encoding="utf-8"))["finished_at"] is None
        assert traces() <= before_the_run

        iterations = len(measured_before) + 1
        lanes = [{**lane, "iterations": 1} if lane["name"] == "cold" else lane for lane in LANES[:2]]
        rest = {**settings, "gpuckpt_iterations": iterations, "gpuckpt_lanes": lanes, **BILL}
        said = bench(tmp_path, gpuckpt_continue=True, **rest).output
        found = records(tmp_path / run_id)
        check_bill(found, said, tmp_path / run_id)
        assert [record["iteration"] for record in measured(found, {"podman-stock"})] == list(range(1, iterations + 1))
        assert {record["status"] for record in found} == {"ok"}
        assert traces() <= before_the_run
    finally:
        shutil.rmtree(f"/var/lib/gpuckpt/runs/{run_id}", ignore_errors=True)


BILL = {
    "gpuckpt_bill_rounds": 1,
    "gpuckpt_bill_moments_s": [0, 3],
    "gpuckpt_bill_requests": 3,
    "gpuckpt_bill_tokens": 24,
}


def check_bill(found: list[dict[str, Any]], said: str, run_dir: Path) -> None:
    """Each lane was started once more, proved, and measured under load at both moments; the report has the columns."""
    starts = [record for record in found if record["kind"] in ("cold", "restore") and record["bill"]]
    assert {record["lane"]: record["bill"]["started"] for record in starts} == {
        "cold": "cold",
        "podman-stock": "restore",
    }
    assert all(record["warmup"] and record["iteration"] == 1 for record in starts)
    probes = [record for record in found if record["kind"] == "probe" and record["bill"]]
    assert Counter((record["lane"], record["bill"]["asked_s"]) for record in probes) == {
        (lane, moment): 1 for lane in ("cold", "podman-stock") for moment in (0, 3)
    }
    for record in probes:
        assert record["bill"]["at_s"] >= record["bill"]["asked_s"]
        assert [request["tokens"] for request in record["requests"]] == [24] * 3
        assert record["counter"]["after"] == record["counter"]["before"] + 3
    assert "podman-stock, bill 1: " in said
    assert json.loads((run_dir / "manifest.json").read_text(encoding="utf-8"))["bill"]["moments_s"] == [0, 3]
    report = (run_dir / "report.md").read_text(encoding="utf-8")
    assert "| lane | tokens/s at once | × cold start (interval) | ms a token at once |" in report
    assert "ms a token after 3 s" in report


def interrupted_bench(settings: dict[str, Any], last: str) -> str:
    """Runs the console, interrupts it as Ctrl-C does when a line begins with ``last``, and returns all it said."""
    command = [ROOT / ".venv" / "bin" / "gpuckpt", "bench", "--extra-vars", json.dumps(settings)]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith(last):
                process.send_signal(signal.SIGINT)
        assert process.wait() == 130, "".join(lines)
    return "".join(lines)


def test_what_broken_off_runs_left_is_removed_by_the_next(tmp_path: Path, before_the_run: set[str]) -> None:
    names = [f"{RUN_ID}-{name}" for name in ("left-a-checkpoint", "left-a-server", "next")]
    lanes = [lane for lane in LANES if lane["name"] == "process-stock"]
    settings = {**SETTINGS, "gpuckpt_lanes": lanes, "gpuckpt_results_dir": str(tmp_path)}
    try:
        break_off(
            {**settings, "gpuckpt_run_id": names[0], "gpuckpt_iterations": 500}, "Restore: process-stock, iteration 2"
        )
        left = traces() - before_the_run
        assert [path for path in left if path.startswith(f"{STORE}/process-store-")], left

        said = break_off(
            {**settings, "gpuckpt_run_id": names[1], "gpuckpt_iterations": 1, "gpuckpt_warmup_requests": 100000},
            "Warm it up",
        )
        assert all(path in said for path in left), "the checkpoint was removed, and nobody was told"
        assert traces() <= before_the_run
        assert httpx.get(HEALTH).status_code == 200, "the server was not left behind"

        last = {"gpuckpt_run_id": names[2], "gpuckpt_iterations": 1, "gpuckpt_lanes": lanes}
        said = " ".join(bench(tmp_path, **last).output.split())
        assert "left by a benchmark that was broken off: gpuckpt-reference-process-shared-" in said
        assert {record["status"] for record in records(tmp_path / names[2])} == {"ok"}
        assert traces() <= before_the_run
    finally:
        for name in names:
            shutil.rmtree(f"/var/lib/gpuckpt/runs/{name}", ignore_errors=True)


def break_off(settings: dict[str, Any], task: str) -> str:
    """Runs ansible-playbook and ends it and all that it started, as Ctrl-C does, once a task is under way. Returns what it said."""
    command = [ANSIBLE_PLAYBOOK, "bench.yml", "--extra-vars", json.dumps(settings)]
    said = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if task in line:
                break
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)
        said += process.stdout.read()
        assert process.wait() != 0
    return said


def test_two_names_of_one_machine_are_refused_and_a_host_out_of_reach_is_in_the_report(
    tmp_path: Path, before_the_run: set[str]
) -> None:
    here = {"ansible_connection": "local"}
    hosts = {"one": here, "two": here, "ghost": {"ansible_host": "127.0.0.1", "ansible_port": 1}}
    variables = {"ansible_python_interpreter": "/usr/bin/python3"}
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"all": {"vars": variables, "children": {"gpu-nodes": {"hosts": hosts}}}}))
    run_id = f"{RUN_ID}-names"
    lanes = [lane for lane in LANES if lane["name"] == "process-stock"]
    settings = {"gpuckpt_run_id": run_id, "gpuckpt_results_dir": str(tmp_path), "gpuckpt_lanes": lanes}
    try:
        done = play("bench.yml", "-i", str(inventory), check=False, **{**SETTINGS, **settings, "gpuckpt_iterations": 1})
        said = " ".join(done.output.split())
        assert "are one machine, and this play has it as" in said
        assert done.status != 0
        assert [record["status"] for record in measured(records(tmp_path / run_id), {"process-stock"})] == ["ok"]
        report = (tmp_path / run_id / "report.html").read_text(encoding="utf-8")
        assert "2 of 3 hosts are LOST: ghost, " in report
        assert "it was never reached, or was lost with its records. Missing: process-stock" in report
        assert "no failures" not in report
        assert traces() <= before_the_run
    finally:
        shutil.rmtree(f"/var/lib/gpuckpt/runs/{run_id}", ignore_errors=True)


def test_wrong_lanes_are_refused_before_anything_starts(results: Path) -> None:
    wrong = [{"name": "a", "start": "sideways", "runtime": "docker"}]
    refused = bench(results, check=False, gpuckpt_run_id="wrong", gpuckpt_lanes=wrong)
    assert refused.status != 0
    assert "start must be" in refused.output
    assert "runtime must be" in refused.output
    assert not (results / "wrong").exists()
