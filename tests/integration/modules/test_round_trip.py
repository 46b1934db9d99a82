# SPDX-License-Identifier: GPL-3.0-or-later
"""A server is checkpointed once and restored twice, and every record proves that it is the same server."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from module_call import OWN_RUNTIMES
from support import STOCK, WITHOUT_A_CONTAINER, Call, Result, identity

from gpuckpt_report.records.schema import Record

pytestmark = pytest.mark.integration
NATIVE_CUDA = Path(__file__).resolve().parents[2] / "native" / "cuda"


@pytest.fixture(params=[*WITHOUT_A_CONTAINER, "podman"])
def server(request: pytest.FixtureRequest, call: Call) -> Iterator[Result]:
    """Every runtime, one after the other, also those for tests alone; stopped at the end."""
    if request.param == "podman":
        yield request.getfixturevalue("podman_server")
        return
    options = {"runtime": request.param, "server": request.getfixturevalue("bare_server")}
    yield options
    call("ckpt_stop", **options)


@pytest.mark.parametrize(
    ("source", "flags"),
    [
        ("store", ["--keep"]),
        ("tar", []),
        ("tar.zst", ["--ignore-static-ip"]),
        pytest.param("store", [], marks=pytest.mark.long),
        pytest.param("tar.gz", [], marks=pytest.mark.long),
    ],
)
def test_podman_round_trip(call: Call, podman_server: Result, store: Path, source: str, flags: list[str]) -> None:
    round_trip(call, podman_server, store, source, flags)


@pytest.mark.parametrize(
    ("server", "host"),
    [
        ("process", "::1"),
        ("podman", "[::1]"),
        *(pytest.param(name, "[::1]", marks=pytest.mark.long) for name in WITHOUT_A_CONTAINER),
        *(pytest.param(name, "::1", marks=pytest.mark.long) for name in (*OWN_RUNTIMES, "podman")),
    ],
    indirect=["server"],
)
def test_a_server_on_ipv6(call: Call, server: Result, store: Path, host: str) -> None:
    """Health, canary, counter, checkpoint, restore and the port's end; an address on IPv4 answers nobody."""
    options = server["server"]
    options |= {"host": host, "command": [*options["command"], f"--host={host}"]}
    round_trip(call, server, store, "store", ["--keep"] if server["runtime"] == "podman" else [])
    call("ckpt_stop", **server)
    call("ckpt_start", **server)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{options['port']}/health")
    assert httpx.get(f"http://[::1]:{options['port']}/health").status_code == 200
    other = {**options, "name": f"{options['name']}-other"}
    taken = call("ckpt_start", runtime=server["runtime"], server=other)
    call("ckpt_stop", runtime=server["runtime"], server=other)
    assert taken["reason"] == "port_taken"
    assert f"port {options['port']} of this node is in use by python3 (pid " in taken["msg"]


CONNECTED_TO_ITSELF = """
import os, socket, sys
listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
near = socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
far = listener.accept()[0]
for end in (near, far):
    end.set_inheritable(True)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_connections_between_the_servers_own_processes(call: Call, process_server: Result, store: Path) -> None:
    server = process_server["server"]
    server["command"] = ["/usr/bin/python3", "-c", CONNECTED_TO_ITSELF, *server["command"]]
    round_trip(call, process_server, store, "store", [])


# As vLLM does: a log that grows all the time, a semaphore without a name and the process that watches over it.
BUSY = """
import multiprocessing.resource_tracker, runpy, sys, threading, time
held = multiprocessing.get_context("fork").Semaphore(1)
multiprocessing.resource_tracker.ensure_running()
def chatter():
    while True:
        print("still here", flush=True)
        time.sleep(0.002)
threading.Thread(target=chatter, daemon=True).start()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def shared_memory_files() -> set[str]:
    """Files in shared memory, but for those of the native tests, which may run at the same time."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("torture-")}


def test_many_checkpoints_of_one_busy_server(call: Call, process_server: Result, store: Path) -> None:
    """They are restored in any order, and nothing of them is in the way of the next server's checkpoint."""
    shared_memory = shared_memory_files()
    server = process_server["server"]
    server["command"] = ["/usr/bin/python3", "-c", BUSY, *server["command"][1:]]
    modes = ["none", "kv-drop", "sleep1"]
    for generation in ("first", "second"):
        golden = {mode: {"dir": str(store / f"{generation}-{mode}")} for mode in modes}
        call("ckpt_start", **process_server)
        for mode in modes:
            last = mode == modes[-1]
            options = {"checkpoint": golden[mode], "slimming": mode, "leave_running": not last}
            assert call("ckpt_checkpoint", **process_server, criu=STOCK, **options)["record"]["status"] == "ok"
        for mode in [*reversed(modes), *modes]:
            result = call(
                "ckpt_restore",
                **process_server,
                criu=STOCK,
                checkpoint=golden[mode],
                slimming=mode,
                stop_after=True,
                record=identity(f"busy-{mode}"),
            )
            assert result["record"]["status"] == "ok", result["record"]["message"]
        assert not [name for name in os.listdir("/dev/shm") if name.startswith("link_remap")]
    assert shared_memory_files() == shared_memory


# CI tries every other one, so that it has each runtime and each source.
WITHOUT_A_CONTAINER_FROM = [
    pytest.param(runtime, source, marks=[pytest.mark.long] if (number + place) % 2 else [])
    for number, runtime in enumerate(WITHOUT_A_CONTAINER)
    for place, source in enumerate(("store", "tar", "tar.gz", "tar.zst"))
]


@pytest.mark.parametrize(("server", "source"), WITHOUT_A_CONTAINER_FROM, indirect=["server"])
def test_round_trip_without_a_container(call: Call, server: Result, store: Path, source: str) -> None:
    round_trip(call, server, store, source, [])


def round_trip(call: Call, server: Result, store: Path, source: str, flags: list[str]) -> None:
    checkpoint = {"dir": str(store / "golden"), "source": source}
    assert call("ckpt_start", **server)["record"]["status"] == "ok"
    probe = call("ckpt_probe", **server, requests=3)["record"]
    assert len(probe["requests"]) == 3
    assert probe["counter"]["after"] == probe["counter"]["before"] + 3
    dump = call("ckpt_checkpoint", **server, criu=STOCK, checkpoint=checkpoint)
    assert dump["record"]["status"] == "ok"
    assert dump["record"]["bytes"]["images"]["pages"] > 16 << 20
    for iteration in (1, 2):
        path = store / f"{iteration}.json"
        result = call(
            "ckpt_restore",
            **server,
            criu=STOCK,
            checkpoint=checkpoint,
            flags=flags,
            stop_after=True,
            record=identity("lane", iteration),
            record_path=str(path),
        )
        prove(result["record"], dump["record"])
        prints_stats = ["podman"] if server["runtime"] == "podman" else []
        assert set(result["record"]["stats"]) == {"criu", "digests", *prints_stats}
        assert json.loads(path.read_text()) == result["record"]
        assert result["record"]["conditions"]["calibration_s"] > 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def prove(record: Result, dump: Result) -> None:
    """The record of a restore that worked, as the controller accepts it."""
    Record.model_validate_json(json.dumps(record))
    assert record["status"] == "ok", record["message"]
    assert [name for name, passed in record["checks"].items() if passed] == [
        "exit_zero",
        "no_error_line",
        "pids_alive",
        "counter_survived",
        "canary_equal",
        "memory_equal",
    ]
    assert record["canary"]["tokens"] == dump["canary"]["tokens"]
    assert record["counter"]["after"] == dump["counter"]["before"] + 1
    times = record["t"]
    assert 0 < times["T3"] < times["T4"] < times["T5"]
    assert times["T1"] > 0
    assert {"criu_setup", "read_images", "fork_and_files", "memory_and_threads", "finish"} <= set(record["phases"])
    assert record["phases"]["unattributed"]["end"] < times["T4"] / 2


@pytest.mark.parametrize("mode", ["sleep1", "sleep2", "kv-drop"])
def test_slimming_makes_it_smaller_and_wakes_within_the_clock(
    call: Call, process_server: Result, store: Path, mode: str
) -> None:
    call("ckpt_start", **process_server)
    plain = call(
        "ckpt_checkpoint", **process_server, criu=STOCK, checkpoint={"dir": str(store / "plain")}, leave_running=True
    )["record"]
    slim = call(
        "ckpt_checkpoint", **process_server, criu=STOCK, checkpoint={"dir": str(store / "slim")}, slimming=mode
    )["record"]
    saved = plain["bytes"]["images_total"] - slim["bytes"]["images_total"]
    assert saved > (28 << 20 if mode == "sleep2" else 12 << 20)
    restored = call(
        "ckpt_restore", **process_server, criu=STOCK, checkpoint={"dir": str(store / "slim")}, slimming=mode
    )["record"]
    assert restored["status"] == "ok"
    wake = restored["phases"]["wake"]
    assert restored["t"]["T3"] <= wake["start"] < wake["end"] <= restored["t"]["T4"]


def test_any_server_is_described_by_its_command_alone(call: Call, process_server: Result, store: Path) -> None:
    """Engine `command`: a question of its own, a counter that grows by more than one, hooks, and no digest of its memory."""
    server = process_server["server"]
    server |= {
        "kind": "command",
        "question": {
            "path": "/v1/completions",
            "body": {
                "model": "gpuckpt-reference",
                "prompt": "{prompt}",
                "max_tokens": "{max_tokens}",
                "temperature": 0,
            },
            "field": "choices.0.text",
        },
        "counter_metric": "gpuckpt_tokens_total",
        "sleep": {"none": {"before": [["/sleep?level=1", None]], "after": [["/wake_up", None]]}},
    }
    started = call("ckpt_start", **process_server)["record"]
    assert started["status"] == "ok", started["message"]
    dump = call("ckpt_checkpoint", **process_server, criu=STOCK, checkpoint={"dir": str(store / "golden")})["record"]
    assert dump["status"] == "ok", dump["message"]
    for _ in range(2):
        restored = call(
            "ckpt_restore",
            **process_server,
            criu=STOCK,
            checkpoint={"dir": str(store / "golden")},
            stop_after=True,
            record=identity("any"),
        )["record"]
        assert restored["status"] == "ok", restored["message"]
        Record.model_validate_json(json.dumps(restored))
        assert restored["canary"]["tokens"] == dump["canary"]["tokens"]
        assert len(dump["canary"]["tokens"]) == 1
        assert restored["counter"]["after"] == dump["counter"]["before"] + 16
        assert restored["checks"]["counter_survived"] is True
        assert restored["checks"]["memory_equal"] is None
        assert "wake" in restored["phases"]


# Neither OpenAI's protocol nor a health page of its own, and a counter that stands still.
SMALL = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b"standing 3\\n")
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(b'{"embedding": [0.25, -1.5]}')
    def answer(self, content):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def small_server(call: Call, process_server: Result) -> Result:
    server = process_server["server"]
    server |= {
        "kind": "command",
        "command": ["/usr/bin/python3", "-c", SMALL, str(server["port"])],
        "health_path": "/",
        "question": {"path": "/embed", "body": {"text": "{prompt}"}, "field": "embedding"},
    }
    return process_server


def test_a_server_with_nothing_but_a_question(call: Call, small_server: Result, store: Path) -> None:
    call("ckpt_start", **small_server)
    dump = call("ckpt_checkpoint", **small_server, criu=STOCK, checkpoint={"dir": str(store / "golden")})["record"]
    assert dump["status"] == "ok", dump["message"]
    restored = call("ckpt_restore", **small_server, criu=STOCK, checkpoint={"dir": str(store / "golden")})["record"]
    assert restored["status"] == "ok", restored["message"]
    assert restored["canary"]["tokens"] == ["[0.25, -1.5]"]
    assert restored["checks"]["counter_survived"] is None


def test_a_counter_that_stands_still_is_refused_before_the_server_stops(
    call: Call, small_server: Result, store: Path
) -> None:
    small_server["server"]["counter_metric"] = "standing"
    call("ckpt_start", **small_server)
    refused = call("ckpt_checkpoint", **small_server, criu=STOCK, checkpoint={"dir": str(store / "golden")})
    assert refused["reason"] == "bad_input"
    assert "standing did not grow with a request" in refused["msg"]
    assert httpx.get(f"http://127.0.0.1:{small_server['server']['port']}/").status_code == 200


def test_dropped_page_cache_is_proven_on_a_disk(call: Call, process_server: Result, disk: Path) -> None:
    checkpoint = {"dir": str(disk / "golden"), "source": "disk"}
    call("ckpt_start", **process_server)
    call("ckpt_checkpoint", **process_server, criu=STOCK, checkpoint=checkpoint)
    record = call("ckpt_restore", **process_server, criu=STOCK, checkpoint=checkpoint, page_cache="dropped")["record"]
    assert record["status"] == "ok", record["message"]
    assert record["page_cache"]["resident_fraction"] < 0.01


def test_leave_running_keeps_the_server_answering(call: Call, server: Result, store: Path) -> None:
    call("ckpt_start", **server)
    result = call(
        "ckpt_checkpoint", **server, criu=STOCK, checkpoint={"dir": str(store / "golden")}, leave_running=True
    )
    assert result["record"]["status"] == "ok"
    assert httpx.get(f"http://127.0.0.1:{server['server']['port']}/health").status_code == 200


def test_stop_deletes_a_checkpoint_and_is_idempotent(call: Call, process_server: Result, store: Path) -> None:
    folder = store / "golden"
    call("ckpt_start", **process_server)
    call("ckpt_checkpoint", **process_server, criu=STOCK, checkpoint={"dir": str(folder)})
    options = {**process_server, "checkpoints": [str(folder)]}
    assert call("ckpt_stop", **options, _ansible_check_mode=True)["changed"]
    assert folder.is_dir()
    assert call("ckpt_stop", **options)["changed"]
    assert not folder.exists()
    assert not call("ckpt_stop", **options)["changed"]


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake libcuda of the native tests, for a machine without a GPU."""
    folder = tmp_path_factory.mktemp("fakes")
    subprocess.run(["make", "--quiet", "-C", NATIVE_CUDA, f"O={folder}", "fakes"], check=True)
    return folder / "libcuda.so.1"


# Notes at each of CRIU's stages which pools there are, and whether they have opened the driver.
NOTE_POOLS = """#!/bin/sh
for process in /proc/[0-9]*; do
    case $(tr '\\0' ' ' 2>/dev/null <"$process/cmdline") in
    */patched/bin/gpuckpt-pool*) grep -q {driver} "$process/maps" && echo "$CRTOOLS_SCRIPT_ACTION ${{process#/proc/}}" >>{notes} ;;
    esac
done
"""


def test_a_resident_pool_is_there_before_the_restore_and_gone_after_it(
    call: Call,
    process_server: Result,
    store: Path,
    fake_driver: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = {"dir": str(store / "golden")}
    call("ckpt_start", **process_server)
    assert call("ckpt_checkpoint", **process_server, criu=STOCK, checkpoint=checkpoint)["record"]["status"] == "ok"
    notes, script = tmp_path / "notes", tmp_path / "note.sh"
    script.write_text(NOTE_POOLS.format(driver=fake_driver, notes=notes))
    script.chmod(0o755)
    monkeypatch.setenv("GPUCKPT_LIBCUDA", str(fake_driver))
    monkeypatch.setenv("GPUCKPT_FAKE_DIR", str(tmp_path))
    options = {
        **process_server,
        "criu": {"build": "patched"},
        "checkpoint": checkpoint,
        "flags": ["--action-script", str(script)],
        "resident_pool": True,
        "stop_after": True,
    }
    record = call("ckpt_restore", **options, record=identity("resident"))["record"]
    assert record["status"] == "ok", record["message"]
    [start] = [action for action in record["actions"] if action[0].endswith("/patched/bin/gpuckpt-pool")]
    assert start[1:] == ["--once", "--no-contexts"]
    seen = dict(line.split() for line in notes.read_text().splitlines())
    assert {"pre-restore", "post-resume"} <= set(seen)
    [pool] = set(seen.values())
    assert not Path(f"/proc/{pool}").exists()

    monkeypatch.setenv("GPUCKPT_LIBCUDA", "/nonexistent/libcuda.so.1")
    record = call("ckpt_restore", **options, record=identity("resident", seq=2))["record"]
    assert (record["status"], record["reason"], record["t"]["T1"]) == ("failed", "runtime_failed", None)
    assert "the resident pool cannot initialise the GPUs: cannot open the NVIDIA driver library" in record["message"]
    assert not [action for action in record["actions"] if "restore" in action], "CRIU was not even started"
