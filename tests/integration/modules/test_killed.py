# SPDX-License-Identifier: GPL-3.0-or-later
"""A module that is killed, or runs out of time, leaves nothing in force: no settings, no command, no lock, no server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from module_call import ModuleCall
from support import STOCK, Call, Result, identity

from gpuckpt_report.records.schema import Record

pytestmark = pytest.mark.integration
LOCK = Path("/run/gpuckpt/lock")
OVERRIDES = Path("/run/gpuckpt/criu.env")
RUNC_CONF = Path("/etc/criu/runc.conf")
FRONT = "/usr/local/sbin/criu"
LIMIT_S = 60.0
NOBODY = "65534"


@pytest.fixture
def stall(server: Result, tmp_path: Path) -> Iterator[Callable[[str], list[str]]]:
    """Lets real CRIU stand still at one of its hooks. Returns flags for the process runtime; podman reads its own file."""
    before = RUNC_CONF.read_text()

    def at(hook: str) -> list[str]:
        script = tmp_path / "stall.sh"
        reached = tmp_path / "reached"
        script.write_text(f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = {hook} ] || exit 0\n: >{reached}\nexec sleep 300\n')
        script.chmod(0o755)
        if server["runtime"] == "process":
            return ["--action-script", str(script)]
        RUNC_CONF.write_text(f"{before}\naction-script {script}\n")
        return []

    yield at
    RUNC_CONF.write_text(before)


def wait_for(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {LIMIT_S:g} s for {what}"
        time.sleep(0.05)


def build_in_force() -> str:
    """Which CRIU somebody's podman would start now."""
    traced = subprocess.run(["sh", "-x", FRONT, "--version"], capture_output=True, text=True, check=True).stderr
    return next(line for line in traced.splitlines() if line.startswith("+ exec ")).split("/")[-3]


def commands_under_way() -> list[str]:
    """Processes of CRIU and podman, and the script that CRIU waits for."""
    listed = subprocess.run(["ps", "-eo", "stat=,comm=,args="], capture_output=True, text=True, check=True).stdout
    wanted = ("criu", "podman", "runc")
    rows = [line.split(None, 2) for line in listed.splitlines() if line.split()[0][0] != "Z"]
    return [" ".join(row) for row in rows if row[1].startswith(wanted) or row[-1] == "sleep 300"]


@pytest.mark.parametrize("victim", ["worker", "guard"])
@pytest.mark.parametrize("hook", ["post-restore", "pre-dump"])
def test_kill(
    call: Call, server: Result, store: Path, stall: Callable[[str], list[str]], tmp_path: Path, hook: str, victim: str
) -> None:
    checkpoint = {"dir": str(store / "golden")}
    keep = ["--keep"] if server["runtime"] == "podman" else []
    assert call("ckpt_start", **server)["record"]["status"] == "ok"
    options = {**server, "criu": STOCK, "checkpoint": checkpoint}
    if hook == "pre-dump":
        under_way = ModuleCall("ckpt_checkpoint", {**options, "flags": stall(hook)})
    else:
        assert call("ckpt_checkpoint", **options)["record"]["status"] == "ok"
        under_way = ModuleCall("ckpt_restore", {**options, "flags": keep + stall(hook)})
    wait_for((tmp_path / "reached").exists, f"CRIU to reach {hook}")
    held = json.loads(LOCK.read_text())
    assert build_in_force() == "stock", "the lane's build is in force while its module lives"
    os.kill(held["pid"] if victim == "worker" else under_way.process.pid, signal.SIGKILL)

    wait_for(lambda: not lives(held), "the worker to end")
    assert build_in_force() == "current", "nobody's podman runs with what a killed module had set"
    said = under_way.finish(LIMIT_S)
    if victim == "worker":
        assert said is not None
        assert "was killed (signal 9)" in said["msg"]
    assert not OVERRIDES.exists()
    assert commands_under_way() == []
    assert "userdata/checkpoint" not in Path("/proc/self/mountinfo").read_text()
    subprocess.run(["flock", "--nonblock", LOCK, "true"], check=True)

    (tmp_path / "stall.sh").write_text("#!/bin/sh\n")
    if hook == "post-restore":
        healed = call("ckpt_restore", **options, flags=keep)
    else:
        call("ckpt_stop", **server)
        healed = call("ckpt_start", **server)
    assert healed["record"]["status"] == "ok", (healed["msg"], healed["log_lines"])


def lives(held: dict[str, Any]) -> bool:
    stat = ""
    with suppress(OSError):
        stat = Path(f"/proc/{held['pid']}/stat").read_text()
    return bool(stat) and stat.rpartition(")")[2].split()[0] not in "ZX"


def test_one_over_its_limit_is_one_record(
    call: Call, server: Result, store: Path, stall: Callable[[str], list[str]], tmp_path: Path
) -> None:
    checkpoint = {"dir": str(store / "golden")}
    keep = ["--keep"] if server["runtime"] == "podman" else []
    options = {**server, "criu": STOCK, "checkpoint": checkpoint}
    call("ckpt_start", **server)
    call("ckpt_checkpoint", **options)
    path = tmp_path / "000001-restore.json"
    result = call(
        "ckpt_restore",
        **options,
        flags=keep + stall("post-restore"),
        record=identity("slow"),
        record_path=str(path),
        deadline_s=3,
    )
    assert (result["reason"], result.get("failed", False)) == ("timeout", False)
    assert "not done within 3 s" in result["msg"]
    assert Record.model_validate_json(path.read_text()).status == "failed"
    assert commands_under_way() == []
    (tmp_path / "stall.sh").write_text("#!/bin/sh\n")
    assert call("ckpt_restore", **options, flags=keep, deadline_s=60)["record"]["status"] == "ok"


def test_stop_ends_what_is_still_under_way_of_its_run(
    call: Call, server: Result, store: Path, stall: Callable[[str], list[str]], tmp_path: Path
) -> None:
    options = {**server, "criu": STOCK, "checkpoint": {"dir": str(store / "golden")}}
    call("ckpt_start", **server)
    call("ckpt_checkpoint", **options)
    keep = ["--keep"] if server["runtime"] == "podman" else []
    under_way = ModuleCall(
        "ckpt_restore", {**options, "flags": keep + stall("post-restore"), "record": identity("slow")}
    )
    wait_for((tmp_path / "reached").exists, "CRIU to reach post-restore")
    stopped = call("ckpt_stop", **server, run_id=identity("slow")["run_id"])
    assert stopped["reason"] is None, stopped
    said = under_way.finish(LIMIT_S)
    assert said is not None
    assert said["reason"] == "timeout"
    assert commands_under_way() == []


def test_nobody_else_can_hold_the_lock(call: Call, process_server: Result) -> None:
    call("ckpt_stop", **process_server)
    LOCK.chmod(0o644)
    LOCK.parent.chmod(0o755)
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    holding = subprocess.Popen([*as_nobody, "sh", "-c", f"exec flock {LOCK} sleep 300"])
    try:
        wait_for(lambda: held_by_somebody(LOCK), "the lock to be held")
        # what an earlier version left open to others is replaced
        assert call("ckpt_stop", **process_server)["reason"] is None
        assert (LOCK.stat().st_mode & 0o777, LOCK.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    finally:
        subprocess.run(["kill", *children(holding.pid), str(holding.pid)], check=True)
        holding.wait()
    for command in (["flock", "--nonblock", str(LOCK), "true"], ["ls", str(LOCK.parent)]):
        refused = subprocess.run([*as_nobody, *command], capture_output=True, text=True, check=False)
        assert "Permission denied" in refused.stderr


def held_by_somebody(path: Path) -> bool:
    return subprocess.run(["flock", "--nonblock", path, "true"], check=False).returncode != 0


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
