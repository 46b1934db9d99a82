# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever is killed during a restore or a dump: nothing of the server is left, and the next restore works.

Each kind of kill is tried once. GPUCKPT_KILLS=N tries each N times more, at moments drawn with GPUCKPT_SEED.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from ansible.module_utils.ckpt.system import ending, procfs
from support import STOCK, Call, Result

pytestmark = pytest.mark.integration
LATEST_S = 0.09
MORE = int(os.environ.get("GPUCKPT_KILLS", "0"))
CHANCE = random.Random(os.environ.get("GPUCKPT_SEED", "1"))


def command_lines() -> dict[int, list[str]]:
    """Command lines of all processes of this node, by number."""
    found = {}
    for process in ending.processes():
        with suppress(OSError):
            found[process.pid] = Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace").split("\0")
    return found


def those_of(program: str, before: set[int]) -> list[int]:
    """Numbers of the processes of a program that were not there before, the first one first."""
    found = [pid for pid, argv in command_lines().items() if os.path.basename(argv[0]) == program]
    return sorted(pid for pid in found if pid not in before)


def kill_during_criu(victim: str, delay_s: float, before: set[int], how: signal.Signals, over: Future[Result]) -> bool:
    """Kills, or stops, a program's processes once it and CRIU are at work. False if they were not seen, or are gone."""
    while not (those_of("criu", before) and those_of(victim, before)):
        if over.done():
            return False
    time.sleep(delay_s)
    killed = False
    for pid in those_of(victim, before):
        with suppress(ProcessLookupError):
            os.kill(pid, how)
            killed = True
    return killed


def broken_off(
    call: Call, victim: str, delay_s: float, module: str, how: signal.Signals = signal.SIGKILL, **options: Any
) -> Result:
    """Calls a module whose helper is killed or stopped meanwhile; returns the module's result."""
    before = set(command_lines())
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(call, module, **options)
        killed = kill_during_criu(victim, delay_s, before, how, under_way)
        result = under_way.result()
    print(f"{module} {options['runtime']} {victim} +{delay_s:.3f} s: {how.name} {killed}, {result['reason']}")
    return result


def tries(victims: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Each victim as soon as CRIU is seen, then at moments that chance draws."""
    for number in range(1 + MORE):
        for victim in victims:
            yield victim, CHANCE.uniform(0, LATEST_S) if number else 0.0


def require_nothing_left(server: Result, identity: str | None = None) -> None:
    """No process of the server, no helper that worked on it, no cgroup of it, and its port is free."""
    port = server["server"]["port"]
    assert not {pid: argv for pid, argv in command_lines().items() if f"--port={port}" in argv}
    assert procfs.port_holder(port) is None
    if identity:
        assert not ending.living(ending.Container(identity).holds)
        assert not ending.Container(identity).cgroups()
        assert identity not in Path("/proc/self/mountinfo").read_text()


def serves(server: Result) -> bool:
    return httpx.get(f"http://127.0.0.1:{server['server']['port']}/health", timeout=30).status_code == 200


def start_and_checkpoint(call: Call, server: Result, folder: Path, source: str) -> tuple[Result, str | None]:
    """A checkpoint to restore. Returns the options that name it, and the container's identity if it is one."""
    golden = {**server, "criu": STOCK, "checkpoint": {"dir": str(folder), "source": source}}
    assert call("ckpt_start", **server)["record"]["status"] == "ok"
    made = call("ckpt_checkpoint", **golden)
    assert made["record"]["status"] == "ok", made["msg"]
    return golden, json.loads((folder / "checkpoint.json").read_text())["instance"].get("container_id")


def kill_restores(call: Call, golden: Result, identity: str | None, victims: tuple[str, ...]) -> None:
    server = {"runtime": golden["runtime"], "server": golden["server"]}
    for victim, delay in tries(victims):
        result = broken_off(call, victim, delay, "ckpt_restore", **golden)
        if result["reason"] is None:
            # its part in the restore was over already
            assert serves(server)
        else:
            require_nothing_left(server, identity)
        again = call("ckpt_restore", **golden, replace_running=True, stop_after=True)
        assert again["record"]["status"] == "ok", (again["msg"], again["log_lines"])
        require_nothing_left(server, identity)
    assert call("ckpt_stop", **server)["reason"] is None
    require_nothing_left(server, identity)


def test_killed_restores_of_a_process_leave_nothing(call: Call, process_server: Result, store: Path) -> None:
    golden, _ = start_and_checkpoint(call, process_server, store / "golden", "store")
    kill_restores(call, golden, None, ("criu",))


def test_killed_restores_of_a_container_leave_nothing(call: Call, podman_server: Result, store: Path) -> None:
    golden, identity = start_and_checkpoint(call, podman_server, store / "golden", "store")
    kill_restores(call, {**golden, "flags": ["--keep"]}, identity, ("podman", "conmon", "runc", "criu"))


def test_a_container_whose_monitor_was_killed_is_restored_again(call: Call, podman_server: Result, store: Path) -> None:
    """podman waits for the end that the monitor would have told it of."""
    golden, identity = start_and_checkpoint(call, podman_server, store / "golden", "store")
    golden["flags"] = ["--keep"]
    before = set(command_lines())
    assert call("ckpt_restore", **golden)["record"]["status"] == "ok"
    for pid in those_of("conmon", before):
        os.kill(pid, signal.SIGKILL)
    again = call("ckpt_restore", **golden, replace_running=True, stop_after=True)
    assert again["record"]["status"] == "ok", (again["msg"], again["log_lines"])
    require_nothing_left(podman_server, identity)


def test_a_restore_over_its_limit_leaves_nothing(call: Call, podman_server: Result, store: Path) -> None:
    """podman hangs while what it restores comes up: all of it ends."""
    golden, identity = start_and_checkpoint(call, podman_server, store / "golden", "store")
    golden["flags"] = ["--keep"]
    hasty = {**golden, "server": {**golden["server"], "health_timeout_s": 3}}
    for victim, delay in tries(("podman", "conmon", "criu") if MORE else ("podman",)):
        result = broken_off(call, victim, delay, "ckpt_restore", signal.SIGSTOP, **hasty)
        if result["reason"] is None:
            # its part in the restore was over already
            assert serves(podman_server)
        else:
            assert result["reason"] in ("timeout", "server_unhealthy", "criu_failed")
            require_nothing_left(podman_server, identity)
        again = call("ckpt_restore", **golden, replace_running=True, stop_after=True)
        assert again["record"]["status"] == "ok", (again["msg"], again["log_lines"])


def test_killed_restores_of_an_archive_leave_nothing(call: Call, podman_server: Result, store: Path) -> None:
    golden, identity = start_and_checkpoint(call, podman_server, store / "golden", "tar")
    kill_restores(call, golden, identity, ("podman", "conmon", "runc", "criu") if MORE else ("podman",))


def test_killed_dumps_leave_a_server_or_nothing(call: Call, server: Result, store: Path) -> None:
    """A server that answers goes on and can be checkpointed; one that does not is gone with all that it held."""
    golden = {**server, "criu": STOCK, "checkpoint": {"dir": str(store / "golden")}}
    for victim, delay in tries(("podman", "criu") if server["runtime"] == "podman" else ("criu",)):
        started = call("ckpt_start", **server)
        assert started["record"]["status"] == "ok", started["msg"]
        result = broken_off(call, victim, delay, "ckpt_checkpoint", **golden)
        if result["reason"] is not None and "goes on serving" in result["msg"]:
            assert serves(server)
            result = call("ckpt_checkpoint", **golden)
            assert result["reason"] is None, result
        if result["reason"] is None:
            again = call("ckpt_restore", **golden, flags=["--keep"] if server["runtime"] == "podman" else [])
            assert again["record"]["status"] == "ok", (again["msg"], again["log_lines"])
        else:
            require_nothing_left(server)
        assert call("ckpt_stop", **server)["reason"] is None
        require_nothing_left(server)


def test_a_restore_onto_a_running_server_is_refused(call: Call, process_server: Result, store: Path) -> None:
    """Two at once: one restores, the other is told that the server runs, and the first one's goes on serving."""
    golden, _ = start_and_checkpoint(call, process_server, store / "golden", "store")
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(call, "ckpt_restore", **golden) for _ in range(2)]
        results = [one.result() for one in both]
    assert sorted(str(result["reason"]) for result in results) == ["None", "server_running"]
    assert serves(process_server)
    assert call("ckpt_restore", **golden, replace_running=True)["record"]["status"] == "ok"
    assert serves(process_server)
