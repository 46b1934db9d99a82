# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong on a real node ends in one message with cause and fix, and leaves nothing stuck."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from ansible.module_utils.ckpt.checkpoints import archive, manifest
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.system.commands import Commands
from support import STOCK, Call, Result, identity

from gpuckpt_report.records.schema import Record

pytestmark = pytest.mark.integration
OPEN_IO_URING = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
descriptor = libc.syscall(425, 4, (ctypes.c_char * 120)())
if descriptor < 0:
    sys.exit(f"io_uring_setup: {os.strerror(ctypes.get_errno())}")
os.set_inheritable(descriptor, True)
os.execv(sys.argv[1], sys.argv[1:])
"""

TRACER = """
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
if libc.ptrace(0x4206, int(sys.argv[1]), 0, 0):  # PTRACE_SEIZE
    sys.exit(f"ptrace: {ctypes.get_errno()}")
print("traces", flush=True)
time.sleep(600)
"""
# a thread gets the number after the last one that was given
THREAD_WITH_NUMBER = """
import sys, threading, time
open("/proc/sys/kernel/ns_last_pid", "w").write(str(int(sys.argv[1]) - 1))
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
print("has it", flush=True)
time.sleep(600)
"""


@contextmanager
def running(program: str, argument: int) -> Iterator[None]:
    """A Python program that runs during the test, from its first line of output on."""
    command = [sys.executable, "-c", program, str(argument)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def pid_of(server: Result) -> int:
    return int(json.loads(Path(f"/run/gpuckpt/instances/{server['server']['name']}.json").read_text())["pid"])


def answers(server: Result) -> bool:
    return httpx.get(f"http://127.0.0.1:{server['server']['port']}/health").status_code == 200


def processes_of(server: Result) -> str:
    command = ["pgrep", "-f", f"--port={server['server']['port']}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs that holds less than the server."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_port_taken_names_the_holder(call: Call, server: Result) -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", server["server"]["port"]))
        holder.listen()
        result = call("ckpt_start", **server)
    assert result["failed"]
    assert result["reason"] == "port_taken"
    assert f"(pid {os.getpid()})" in result["msg"]


def test_a_failed_measurement_is_a_result_with_a_record(call: Call, process_server: Result, store: Path) -> None:
    path = store / "000001-restore.json"
    result = call(
        "ckpt_restore",
        **process_server,
        criu=STOCK,
        checkpoint={"dir": str(store / "nothing")},
        record=identity("lane"),
        record_path=str(path),
    )
    assert not result.get("failed")
    assert result["reason"] == "images_missing"
    Record.model_validate_json(path.read_text())
    assert call(
        "ckpt_restore",
        **process_server,
        criu=STOCK,
        checkpoint={"dir": str(store / "nothing")},
        record=identity("lane"),
        fail_on_error=True,
    )["failed"]


def test_server_that_never_becomes_healthy(call: Call, server: Result) -> None:
    slow = {**server["server"], "health_path": "/nowhere", "health_timeout_s": 2}
    result = call("ckpt_start", runtime=server["runtime"], server=slow)
    assert result["reason"] == "server_unhealthy"
    assert "within 2 s" in result["msg"]
    assert not processes_of(server)


def test_server_that_dies_shows_its_log(call: Call, server: Result) -> None:
    broken = {**server["server"], "command": [*server["server"]["command"], "--weights", "/missing.bin"]}
    result = call("ckpt_start", runtime=server["runtime"], server=broken)
    assert result["reason"] == "server_died"
    assert any("cannot load the model" in line for line in result["log_lines"])


def test_command_that_does_not_exist(call: Call, server: Result) -> None:
    broken = {**server["server"], "command": ["/no/such/program"]}
    result = call("ckpt_start", runtime=server["runtime"], server=broken)
    assert result["reason"] == "runtime_failed"
    assert "no such file or directory" in result["msg"].lower()


def test_open_connection_fails_clearly_and_leaves_it_serving(call: Call, server: Result, store: Path) -> None:
    call("ckpt_start", **server)
    folder = store / "golden"
    with socket.create_connection(("127.0.0.1", server["server"]["port"])):
        result = call("ckpt_checkpoint", **server, criu=STOCK, checkpoint={"dir": str(folder)})
        assert result["reason"] == "tcp_connection"
        assert "tcp_established" in result["msg"]
    assert answers(server)
    assert call("ckpt_checkpoint", **server, criu=STOCK, checkpoint={"dir": str(folder)})["record"]["status"] == "ok"


@pytest.mark.parametrize(
    ("known", "reason"),
    [({}, "bad_input"), ({"staged": {"before": [["/no-such-path", None]], "after": []}}, "server_unhealthy")],
)
def test_a_slimming_that_is_unknown_or_fails_leaves_it_serving(
    call: Call, process_server: Result, store: Path, known: dict[str, object], reason: str
) -> None:
    call("ckpt_start", **process_server)
    before = pid_of(process_server)
    slimmed = {**process_server, "server": {**process_server["server"], "sleep": known}}
    failed = call("ckpt_checkpoint", **slimmed, criu=STOCK, checkpoint={"dir": str(store / "slim")}, slimming="staged")
    assert failed["reason"] == reason
    assert answers(process_server)
    assert pid_of(process_server) == before


def test_io_uring_holder_is_named_before_the_dump(call: Call, process_server: Result, store: Path) -> None:
    command = [sys.executable, "-c", OPEN_IO_URING, *process_server["server"]["command"]]
    server = {"runtime": "process", "server": {**process_server["server"], "command": command}}
    assert call("ckpt_start", **server)["record"]["status"] == "ok"
    result = call("ckpt_checkpoint", **server, criu=STOCK, checkpoint={"dir": str(store / "golden")})
    assert result["reason"] == "io_uring"
    assert "seccomp" in result["msg"]
    assert answers(server)


def test_store_too_small_is_found_before_the_dump(call: Call, server: Result, small_tmpfs: Path) -> None:
    call("ckpt_start", **server)
    result = call("ckpt_checkpoint", **server, criu=STOCK, checkpoint={"dir": str(small_tmpfs / "golden")})
    assert result["reason"] == "store_full"
    assert "MiB left" in result["msg"]
    assert answers(server)


def test_store_that_fills_up_during_the_dump(call: Call, podman_server: Result, small_tmpfs: Path) -> None:
    call("ckpt_start", **podman_server)
    checkpoint = {"dir": str(small_tmpfs / "golden"), "source": "tar"}
    result = call("ckpt_checkpoint", **podman_server, criu=STOCK, checkpoint=checkpoint)
    assert result["reason"] == "store_full", result
    assert not (small_tmpfs / "golden" / "checkpoint.tar").exists()
    mounts = Path("/proc/self/mountinfo").read_text()
    assert "userdata/checkpoint" not in mounts


def test_truncated_pages_image(call: Call, server: Result, store: Path) -> None:
    folder = store / "golden"
    call("ckpt_start", **server)
    call("ckpt_checkpoint", **server, criu=STOCK, checkpoint={"dir": str(folder)})
    pages = max(folder.glob("images/pages-*.img"), key=lambda path: path.stat().st_size)
    with pages.open("r+b") as image:
        image.truncate(pages.stat().st_size - 4096)
    result = call("ckpt_restore", **server, criu=STOCK, checkpoint={"dir": str(folder)})
    assert result["reason"] == "images_truncated"
    assert pages.name in result["msg"]
    assert not processes_of(server)
    info = call("ckpt_images_info", path=str(folder), strict=True)
    assert info["failed"]
    assert info["reason"] == "images_truncated"


def test_damaged_memory_is_caught_by_the_canary(call: Call, process_server: Result, store: Path) -> None:
    folder = store / "golden"
    call("ckpt_start", **process_server)
    call("ckpt_checkpoint", **process_server, criu=STOCK, checkpoint={"dir": str(folder)})
    pages = max(folder.glob("images/pages-*.img"), key=lambda path: path.stat().st_size)
    with pages.open("r+b") as image:
        image.seek(pages.stat().st_size // 2)
        image.write(bytes(64 << 10))
    result = call("ckpt_restore", **process_server, criu=STOCK, checkpoint={"dir": str(folder)})
    assert result["reason"] in ("canary_differs", "memory_damaged", "server_unhealthy", "server_died")
    assert not processes_of(process_server)


def test_restore_that_criu_breaks_off_names_the_log_line(call: Call, process_server: Result, store: Path) -> None:
    checkpoint = {"dir": str(store / "golden")}
    call("ckpt_start", **process_server)
    call("ckpt_checkpoint", **process_server, criu=STOCK, checkpoint=checkpoint)
    flags = ["--action-script", "/bin/false"]
    result = call("ckpt_restore", **process_server, criu=STOCK, checkpoint=checkpoint, flags=flags)
    assert result["reason"] == "criu_failed"
    assert any("Error (" in line for line in result["log_lines"])
    assert not processes_of(process_server)


def test_a_server_that_cannot_be_dumped_now_is_told_why(call: Call, process_server: Result, store: Path) -> None:
    assert call("ckpt_start", **process_server)["reason"] is None
    options = {**process_server, "criu": STOCK, "checkpoint": {"dir": str(store / "golden")}}
    pid = pid_of(process_server)
    os.kill(pid, signal.SIGSTOP)
    result = call("ckpt_checkpoint", **options)
    os.kill(pid, signal.SIGCONT)
    assert result["reason"] == "server_unhealthy"
    assert f"kill -CONT {pid}" in result["msg"]
    assert "raise" not in result["msg"]
    with running(TRACER, pid):
        result = call("ckpt_checkpoint", **options)
    assert result["reason"] == "not_restorable"
    assert "is traced by process" in result["msg"]
    folder = store / "readonly"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,mode=0700", "tmpfs", folder], check=True)
    try:
        result = call("ckpt_checkpoint", **{**options, "checkpoint": {"dir": str(folder / "golden")}})
    finally:
        subprocess.run(["umount", folder], check=True)
    assert result["reason"] == "file_unusable"
    assert f"{folder}" in result["msg"]
    assert "Read-only file system" in result["msg"]
    assert answers(process_server)


def test_what_keeps_a_checkpoint_from_being_restored_is_told(call: Call, process_server: Result, store: Path) -> None:
    folder = store / "golden"
    options = {**process_server, "criu": STOCK, "checkpoint": {"dir": str(folder)}}
    assert call("ckpt_start", **process_server)["reason"] is None
    pid = pid_of(process_server)
    assert call("ckpt_checkpoint", **options)["reason"] is None
    thread = next(number for name in os.listdir(folder / "images") if (number := core_number(name)) not in (None, pid))
    with running(THREAD_WITH_NUMBER, thread):
        result = call("ckpt_restore", **options)
    assert result["reason"] == "pid_taken"
    assert f"process number {thread} of the checkpoint is in use by a thread" in result["msg"]
    image = folder / "images" / f"core-{pid}.img"
    image.rename(store / "aside")
    image.symlink_to(image.name)
    result = call("ckpt_restore", **options)
    assert result["reason"] == "file_unusable"
    assert image.name in result["msg"]
    image.unlink()
    (store / "aside").rename(image)
    silent = {**process_server["server"], "counter_metric": "nobody_counts_total"}
    result = call("ckpt_restore", **{**options, "server": silent})
    assert result["reason"] == "server_unhealthy"
    assert "nobody_counts_total before the checkpoint" in result["msg"]
    path = folder / "checkpoint.json"
    whole = json.loads(path.read_text())
    odd = {key: value for key, value in whole.items() if key != manifest.DIGEST} | {"colour": "red", "counter": "four"}
    path.write_text(json.dumps(manifest.sealed(odd)))
    result = call("ckpt_restore", **options)
    assert result["reason"] == "images_truncated"
    assert "colour is not known; counter must be a whole number" in result["msg"]
    # after all that, the checkpoint itself is sound
    path.write_text(json.dumps(whole))
    assert call("ckpt_restore", **options)["record"]["status"] == "ok"


def core_number(name: str) -> int | None:
    return int(name[5:-4]) if name.startswith("core-") else None


def test_the_cause_for_which_a_checkpoint_is_missing(call: Call, process_server: Result, store: Path) -> None:
    untaken = {"reason": "port_taken", "cause": "port 80 of this node is in use by nginx (pid 9)."}
    checkpoint = {"dir": str(store / "nothing"), "untaken": untaken}
    result = call("ckpt_restore", **process_server, criu=STOCK, checkpoint=checkpoint)
    assert result["reason"] == "port_taken"
    assert "nginx" in result["msg"]


def test_an_archive_that_tar_cannot_write_whole(tmp_path: Path, small_tmpfs: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "pages-1.img").write_bytes(os.urandom(25 << 20))
    with pytest.raises(CkptError) as caught:
        archive.pack(Commands(), str(tmp_path / "images"), str(small_tmpfs / "checkpoint.tar"))
    assert caught.value.reason == "store_full"
    assert "Wrote only" in " ".join(caught.value.log_lines)


def test_checkpoint_of_a_server_that_does_not_run(call: Call, server: Result, store: Path) -> None:
    result = call("ckpt_checkpoint", **server, criu=STOCK, checkpoint={"dir": str(store / "golden")})
    assert result["reason"] == "server_died"
    assert "ckpt_start" in result["msg"]


def test_criu_missing_and_too_old(call: Call, process_server: Result, tmp_path: Path) -> None:
    criu = {"build": "stock", "home": str(tmp_path)}
    result = call("ckpt_start", **process_server, criu=criu)
    assert result["reason"] == "criu_missing"
    assert "provision.yml" in result["msg"]
    binary = tmp_path / "stock" / "libexec" / "criu"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\necho Version: 3.11\n")
    binary.chmod(0o755)
    assert call("ckpt_start", **process_server, criu=criu)["reason"] == "criu_too_old"


def test_restore_that_never_ends(call: Call, process_server: Result, store: Path, tmp_path: Path) -> None:
    """A fake CRIU hangs, as the real one does on images that were cut short behind our back."""
    call("ckpt_start", **process_server)
    call("ckpt_checkpoint", **process_server, criu=STOCK, checkpoint={"dir": str(store / "golden")})
    binary = tmp_path / "stock" / "libexec" / "criu"
    binary.parent.mkdir(parents=True)
    binary.write_text('#!/bin/sh\n[ "$1" = restore ] && exec sleep 100\necho Version: 4.2.1\n')
    binary.chmod(0o755)
    result = call(
        "ckpt_restore",
        runtime="process",
        server={**process_server["server"], "health_timeout_s": 1},
        criu={"build": "stock", "home": str(tmp_path)},
        checkpoint={"dir": str(store / "golden")},
    )
    assert result["reason"] == "timeout"
    assert "or raise server.health_timeout_s" in result["msg"]
    assert not processes_of(process_server)


def test_container_of_somebody_else_is_left_alone(call: Call, podman_server: Result) -> None:
    name = f"{podman_server['server']['name']}-foreign"
    subprocess.run(["podman", "create", "--name", name, podman_server["server"]["image"], "true"], check=True)
    try:
        server = {**podman_server["server"], "name": name}
        result = call("ckpt_stop", runtime="podman", server=server)
        assert result["failed"]
        assert "left alone" in result["msg"]
        assert call("ckpt_start", runtime="podman", server=server)["reason"] == "runtime_failed"
        assert subprocess.run(["podman", "container", "exists", name], check=False).returncode == 0
    finally:
        subprocess.run(["podman", "rm", name], check=True)


def test_every_wrong_option_is_named_at_once(call: Call) -> None:
    server = {"name": "a b", "kind": "other", "port": 0, "colour": "red", "command": "text"}
    result = call("ckpt_start", runtime="podman", server=server)
    assert result["reason"] == "bad_input"
    for word in (
        "server.name",
        "server.kind",
        "server.port",
        "server.colour",
        "server.command",
        "server.model",
        "image",
    ):
        assert word in result["msg"]


def test_dropped_page_cache_on_a_tmpfs_is_refused(call: Call, process_server: Result, store: Path) -> None:
    checkpoint = {"dir": str(store / "golden")}
    call("ckpt_start", **process_server)
    call("ckpt_checkpoint", **process_server, criu=STOCK, checkpoint=checkpoint)
    result = call("ckpt_restore", **process_server, criu=STOCK, checkpoint=checkpoint, page_cache="dropped")
    assert result["reason"] == "bad_input"
    assert "tmpfs" in result["msg"]


def test_stop_refuses_a_folder_that_is_no_checkpoint(call: Call, process_server: Result, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    result = call("ckpt_stop", **process_server, checkpoints=[str(tmp_path)])
    assert result["reason"] == "bad_input"
    assert (tmp_path / "precious").exists()


def test_restore_of_another_runtime_is_refused(call: Call, process_server: Result, store: Path, tmp_path: Path) -> None:
    call("ckpt_start", **process_server)
    call("ckpt_checkpoint", **process_server, criu=STOCK, checkpoint={"dir": str(store / "golden")})
    result = call(
        "ckpt_restore",
        runtime="podman",
        server={**process_server["server"], "image": "localhost/none"},
        criu=STOCK,
        checkpoint={"dir": str(store / "golden")},
    )
    assert result["reason"] == "bad_input"
    assert "runtime" in result["msg"]
    shutil.rmtree(store / "golden")
