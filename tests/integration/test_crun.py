# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers are checkpointed and restored through crun, where this machine has one that can."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plays import WEIGHTS_MIB, play, records, run

pytestmark = pytest.mark.integration

RUN_ID = "crun"
ON_NODE = Path("/var/lib/gpuckpt/runs")
CONTAINER = "gpuckpt-integration-crun"
IMAGE = "localhost/gpuckpt-reference:latest"


@pytest.fixture(scope="module")
def with_crun(provisioned: None) -> Iterator[dict[str, Any]]:
    """Provisions this machine with crun; the variables that say so."""
    if run("stat", "--file-system", "--format=%T", "/sys/fs/cgroup").strip() != "cgroup2fs":
        pytest.skip("crun checkpoints on cgroup v2 alone")
    if "+CRIU" not in run("crun", "--version") or "libcriu.so.2" not in run("ldconfig", "-p"):
        pytest.skip("no crun that can checkpoint: install crun and libcriu2 (Debian 13)")
    variables = {"gpuckpt_weights_mib": WEIGHTS_MIB, "container_runtime_oci_runtime": "crun"}
    play("provision.yml", **variables)
    yield variables
    play("provision.yml", gpuckpt_weights_mib=WEIGHTS_MIB)


def test_servers_are_restored(with_crun: dict[str, Any], tmp_path: Path) -> None:
    settings = {**with_crun, "gpuckpt_run_id": RUN_ID, "gpuckpt_results_dir": str(tmp_path), "gpuckpt_iterations": 1}
    try:
        play("bench.yml", gpuckpt_lane_filter="^podman-(stock|mapped)$", **settings)
    finally:
        subprocess.run(["rm", "-rf", ON_NODE / RUN_ID], check=True)
    found = [record for record in records(tmp_path / RUN_ID) if record["kind"] in ("checkpoint", "restore")]
    assert {"podman-stock", "podman-mapped"} == {record["lane"] for record in found if record["kind"] == "restore"}
    assert [record["message"] for record in found if record["status"] != "ok"] == []


def test_its_criu_has_our_options(with_crun: dict[str, Any]) -> None:
    try:
        run("podman", "run", "--detach", "--name", CONTAINER, "--network=host", IMAGE, "sleep", "600")
        runtime, folder = run("podman", "inspect", "--format={{.OCIRuntime}} {{.StaticDir}}", CONTAINER).split()
        assert runtime == "crun"
        subprocess.run(["podman", "container", "checkpoint", "--keep", CONTAINER], check=True)
        # of criu_runtime_options; CRIU's own is 10 s
        assert "timeout: 120s" in (Path(folder) / "dump.log").read_text(encoding="utf-8")
    finally:
        run("podman", "rm", "--force", "--time=0", CONTAINER)
