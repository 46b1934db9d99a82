# SPDX-License-Identifier: GPL-3.0-or-later
"""A golden checkpoint is made once, served from, and what is wrong with it never keeps users from their server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from ansible.module_utils.ckpt.system import procfs
from conftest import ROOT
from support import Call, Result, tried_by_ci

pytestmark = pytest.mark.integration
PROGRAM = f"import sys; sys.path.insert(0, {str(ROOT / 'module_utils')!r}); from ckpt.golden.program import main; sys.exit(main())"
SERVE = ["/usr/bin/python3", "-I", "-c", PROGRAM]
LIMIT_S = 60


@pytest.fixture
def golden(call: Call, server: Result, store: Path) -> Iterator[Result]:
    """Options of ckpt_golden; what it made is removed at the end."""
    flags = ["--keep"] if server["runtime"] == "podman" else []
    options = {**server, "name": server["server"]["name"], "folder": str(store), "flags": flags, "warmup_requests": 2}
    yield options
    gone = call("ckpt_golden", name=options["name"], state="absent")
    assert gone["reason"] is None, gone
    assert not Path(f"/etc/gpuckpt/servers/{options['name']}.json").exists()
    assert list(store.iterdir()) == []
    left = call("ckpt_stop", **server, left_behind=True)
    assert left["stopped"] == []


def listens(port: int) -> bool:
    return procfs.port_holder(port) is not None


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def status(name: str) -> Result:
    done = subprocess.run([*SERVE, "--status", name], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout)[0])


@contextmanager
def served(options: Result, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """gpuckpt-serve in the foreground, from the moment at which it says that the server is up."""
    with log.open("ab") as out, subprocess.Popen([*SERVE, options["name"]], stderr=out) as process:
        try:
            # to ask for the status starts a program, to look at the port does not
            until(lambda: process.poll() is not None or listens(options["server"]["port"]), "it does not listen")
            until(lambda: process.poll() is not None or status(options["name"])["serving"] is not None, "it is not up")
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.terminate()
            process.wait(LIMIT_S)


def ask(port: int, temperature: float) -> tuple[str, str]:
    """The answer's text and identity."""
    body = {"model": "gpuckpt-reference", "prompt": "The quick brown fox", "max_tokens": 8, "temperature": temperature}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=LIMIT_S)
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["text"]), str(answer.json()["id"])


def complete(port: int) -> str:
    return ask(port, 0)[0]


def test_it_is_made_once_and_served_from(call: Call, golden: Result, tmp_path: Path) -> None:
    port = golden["server"]["port"]
    dry = call("ckpt_golden", **golden, _ansible_check_mode=True)
    assert (dry["changed"], dry["golden"], dry["because"]) == (True, None, ["there is no golden checkpoint yet"])
    made = call("ckpt_golden", **golden)
    assert made["changed"], made
    assert made["golden"]["first_token_s"] > 0
    assert not listens(port), "the trial has been stopped"
    again = call("ckpt_golden", **golden)
    assert (again["changed"], again["because"], again["golden"]) == (False, [], made["golden"])

    for number in range(1, 3):
        with served(golden, tmp_path / "log") as process:
            assert status(golden["name"])["serving"]["mode"] == "restored", (tmp_path / "log").read_text()
            assert complete(port)
            until(lambda count=number: status(golden["name"])["history"]["restored"] == count, "it is not noted")
            refused = call("ckpt_golden", **golden, force=True)
            assert refused["reason"] == "server_running"
            assert complete(port), "and it goes on serving"
        assert process.returncode == 0
        assert not listens(port)
        assert status(golden["name"])["serving"] is None
    told = status(golden["name"])
    assert told["history"]["cold"] == 0
    assert told["worth"]["saved_s"] == pytest.approx(
        made["golden"]["cold_s"] - made["golden"]["first_token_s"], abs=0.01
    )
    assert told["worth"]["made_s"] > made["golden"]["cold_s"]


@pytest.mark.parametrize(
    ("server", "reseeded"),
    [
        ("podman", True),
        ("process", False),
        pytest.param("process", True, marks=pytest.mark.long),
        pytest.param("podman", False, marks=pytest.mark.long),
    ],
    indirect=["server"],
)
def test_two_restores_differ_in_what_is_left_to_chance(
    call: Call, golden: Result, tmp_path: Path, reseeded: bool
) -> None:
    port = golden["server"]["port"]
    if not reseeded:
        golden["server"] = {**golden["server"], "unique": []}
    call("ckpt_golden", **golden)
    answers = []
    for _ in range(2):
        with served(golden, tmp_path / "log"):
            assert status(golden["name"])["serving"]["mode"] == "restored", (tmp_path / "log").read_text()
            answers.append((complete(port), *ask(port, 1)))
    (greedy, sampled, identity), (greedy_again, sampled_again, identity_again) = answers
    assert greedy == greedy_again
    # without a request that makes it unique the second server goes on as the first did
    assert (sampled != sampled_again) is reseeded
    assert (identity != identity_again) is reseeded


@tried_by_ci("process")
def test_a_server_that_cannot_be_made_unique_is_not_committed(call: Call, golden: Result) -> None:
    unique = [["/reseed", {"key": "{file:/nowhere/key}"}]]
    failed = call("ckpt_golden", **{**golden, "server": {**golden["server"], "unique": unique}})
    assert failed["reason"] == "bad_input"
    assert "server.unique names /nowhere/key" in failed["msg"]
    assert not listens(golden["server"]["port"])
    assert not (Path(golden["folder"]) / golden["name"] / "golden.json").exists()
    # what is served is described once it is proved, and nothing was
    assert call("ckpt_golden", **golden)["changed"]


@pytest.mark.parametrize("server", ["process"], indirect=True)
def test_one_that_cannot_be_made_unique_here_is_served_cold(call: Call, golden: Result, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("of this node")
    unique = [["/reseed", {"key": f"{{file:{key}}}"}]]
    golden["server"] = {**golden["server"], "unique": unique}
    call("ckpt_golden", **golden)
    key.unlink()
    with served(golden, tmp_path / "log"):
        serving = status(golden["name"])["serving"]
        assert (serving["mode"], serving["renew"]) == ("cold", False)
        assert str(key) in serving["why"][0]
        assert complete(golden["server"]["port"])


@tried_by_ci("process")
def test_one_that_does_not_fit_is_served_cold_once_and_made_anew(call: Call, golden: Result, tmp_path: Path) -> None:
    call("ckpt_golden", **golden)
    mark = Path(golden["folder"]) / golden["name"] / "golden.json"
    noted = json.loads(mark.read_text())
    noted["identity"]["kernel"] = "5.0.0-of-another-node"
    mark.write_text(json.dumps(noted))

    assert call("ckpt_golden", **golden, _ansible_check_mode=True)["because"][0].startswith(
        "kernel was 5.0.0-of-another-node"
    )
    with served(golden, tmp_path / "log"):
        serving = status(golden["name"])["serving"]
        assert (serving["mode"], serving["renew"]) == ("cold", True)
        assert "kernel was 5.0.0-of-another-node" in serving["why"][0]
        assert complete(golden["server"]["port"])
    assert "a new golden checkpoint" in (tmp_path / "log").read_text()
    assert status(golden["name"])["misfits"] == []
    with served(golden, tmp_path / "log"):
        assert status(golden["name"])["serving"]["mode"] == "restored"
    assert call("ckpt_golden", **golden)["changed"] is False


@pytest.mark.parametrize("server", ["process"], indirect=True)
def test_what_was_exchanged_while_a_server_ran_is_not_in_its_checkpoint(
    call: Call, golden: Result, weights: Path, tmp_path: Path
) -> None:
    made = call("ckpt_golden", **golden)["golden"]
    (Path(made["folder"]) / "checkpoint.json").unlink()
    with served(golden, tmp_path / "log"):
        assert status(golden["name"])["serving"]["mode"] == "cold"
        os.utime(weights)
    after = status(golden["name"])
    assert after["golden"]["folder"] != made["folder"], "made anew of the server that ran"
    (misfit,) = after["misfits"]
    assert misfit.startswith(f"files: {weights} was ")


@tried_by_ci("podman")
def test_a_damaged_one_is_served_cold(call: Call, golden: Result, tmp_path: Path) -> None:
    made = call("ckpt_golden", **golden)["golden"]
    image = max(Path(made["folder"]).glob("images/core-*.img"))
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 1
    image.write_bytes(content)
    with served(golden, tmp_path / "log"):
        serving = status(golden["name"])["serving"]
        assert (serving["mode"], serving["renew"]) == ("cold", True)
        assert complete(golden["server"]["port"])
    assert status(golden["name"])["golden"]["folder"] != made["folder"]


@tried_by_ci("process")
def test_a_failed_attempt_keeps_the_old_one(call: Call, golden: Result, tmp_path: Path) -> None:
    made = call("ckpt_golden", **golden)["golden"]
    broken = {**golden, "server": {**golden["server"], "command": ["/bin/false"]}}
    failed = call("ckpt_golden", **broken)
    assert failed["reason"] is not None
    assert [path.name for path in (Path(golden["folder"]) / golden["name"]).iterdir() if path.is_dir()] == [
        Path(made["folder"]).name
    ]
    with served(golden, tmp_path / "log"):
        assert status(golden["name"])["serving"]["mode"] == "restored"


@tried_by_ci("podman")
def test_a_killed_supervisor_is_no_hindrance(call: Call, golden: Result, tmp_path: Path) -> None:
    call("ckpt_golden", **golden)
    with served(golden, tmp_path / "log") as process:
        process.kill()
        process.wait()
    assert status(golden["name"])["serving"] is None
    with served(golden, tmp_path / "log"):
        assert status(golden["name"])["serving"]["mode"] == "restored", (tmp_path / "log").read_text()
        assert complete(golden["server"]["port"])


def test_a_server_that_ends_ends_the_service(call: Call, golden: Result, tmp_path: Path) -> None:
    call("ckpt_golden", **golden)
    with served(golden, tmp_path / "log") as process:
        pids = subprocess.run(["pgrep", "-f", f"port={golden['server']['port']}"], capture_output=True, text=True)
        for pid in {int(pid) for pid in pids.stdout.split()} - {process.pid, os.getpid()}:
            os.kill(pid, signal.SIGKILL)
        assert process.wait(LIMIT_S) == 1
    assert "has ended by itself" in (tmp_path / "log").read_text()


@tried_by_ci("podman")
def test_it_starts_when_somebody_asks_and_stops_when_nobody_does(call: Call, golden: Result, tmp_path: Path) -> None:
    call("ckpt_golden", **golden)
    public_port, log = free_port(), tmp_path / "log"
    with on_demand(golden, public_port, log) as process:
        assert not listens(golden["server"]["port"]), "nothing runs"
        with ThreadPoolExecutor(20) as clients:
            answers = {answer.result() for answer in [clients.submit(complete, public_port) for _ in range(20)]}
        assert len(answers) == 1
        assert status(golden["name"])["serving"]["mode"] == "restored", log.read_text()
        assert process.wait(LIMIT_S) == 0, log.read_text()
    assert not listens(golden["server"]["port"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def started_by_a_command(name: str, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """As llama-swap does it: it starts a command, asks for /health until that is answered, and sends SIGTERM at the end."""
    with (
        log.open("ab") as out,
        subprocess.Popen([*SERVE, name, f"--listen=127.0.0.1:{port}"], stderr=out) as process,
    ):
        try:
            until(lambda: process.poll() is not None or healthy(port), "it is not healthy")
            yield process
        finally:
            process.terminate()
            process.wait(LIMIT_S)


@tried_by_ci("process")
def test_a_program_that_starts_servers_sees_it_when_it_is_up(call: Call, golden: Result, tmp_path: Path) -> None:
    call("ckpt_golden", **golden)
    port, log = free_port(), tmp_path / "log"
    for _ in range(2):
        with started_by_a_command(golden["name"], port, log) as process:
            assert process.poll() is None, log.read_text()
            # what is healthy there has passed the truth gate: nobody asked in between
            assert status(golden["name"])["serving"]["mode"] == "restored", log.read_text()
            assert complete(port) == complete(golden["server"]["port"])
        assert process.returncode == 0
        assert not listens(port)
        assert not listens(golden["server"]["port"])
    with socket.create_server(("127.0.0.1", port)), started_by_a_command(golden["name"], port, log) as process:
        assert process.wait(LIMIT_S) == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in log.read_text()
    assert not listens(golden["server"]["port"]), "it was refused before anything started"


def another(golden: Result) -> Result:
    """A second server of the node, next to the one that is described."""
    port, name = free_port(), f"{golden['name']}-2"
    command = [word.replace(f"port={golden['server']['port']}", f"port={port}") for word in golden["server"]["command"]]
    return {**golden, "name": name, "server": {**golden["server"], "name": name, "port": port, "command": command}}


@contextmanager
def on_demand(options: Result, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One round of a server that starts when somebody asks, at this port."""
    argv = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", *SERVE, options["name"], "--on-demand", "--idle=1"]
    with log.open("ab") as out, subprocess.Popen(argv, stderr=out) as process:
        try:
            # a connection would be a first request
            until(lambda: procfs.port_holder(port) is not None, "nobody listens")
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(LIMIT_S)


@tried_by_ci("process")
def test_two_servers_take_turns_and_start_at_once(call: Call, golden: Result, tmp_path: Path) -> None:
    two = another(golden)
    servers, log = [golden, two], tmp_path / "log"
    try:
        for options in servers:
            assert call("ckpt_golden", **options)["changed"]
        refused = call("ckpt_golden", **{**two, "server": {**two["server"], "port": golden["server"]["port"]}})
        assert refused["reason"] == "port_taken"
        assert f"is taken by the server {golden['name']}" in refused["msg"]

        for options in [*servers, *servers]:
            port = free_port()
            with on_demand(options, port, log) as process:
                assert complete(port)
                modes = [(status(one["name"])["serving"] or {}).get("mode") for one in servers]
                assert modes == ["restored" if one is options else None for one in servers], log.read_text()
                assert process.wait(LIMIT_S) == 0, log.read_text()

        ports = [free_port() for _ in servers]
        with on_demand(golden, ports[0], log), on_demand(two, ports[1], log), ThreadPoolExecutor(20) as clients:
            answers = [clients.submit(complete, ports[number % 2]) for number in range(20)]
            assert len({answer.result() for answer in answers}) == 1
        # the first may have nobody left, and be stopped, before the second has its turn
        assert log.read_text().count("was restored and answered") == 6, log.read_text()
        assert "cold" not in log.read_text()
    finally:
        assert call("ckpt_golden", name=two["name"], state="absent")["reason"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nobody"], "no server nobody is described on this node"),
        (["../etc"], "is no name of a server"),
        (["nobody", "--on-demand"], "no server nobody is described on this node"),
        (["nobody", "--on-demand", "--listen=1"], "leave --listen out"),
    ],
)
def test_what_cannot_be_served_gets_one_message(provisioned: object, arguments: list[str], said: str) -> None:
    done = subprocess.run([*SERVE, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
