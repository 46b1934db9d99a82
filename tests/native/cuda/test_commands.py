# SPDX-License-Identifier: GPL-3.0-or-later
"""cuda-checkpoint and gpuckpt-pool, built with AddressSanitizer and UBSan, against the fake driver."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

GPU = "GPU-11111111-1111-1111-1111-111111111111"
OTHER_GPU = "22222222-2222-2222-2222-222222222222"
NOT_RUNNING = 3


@pytest.fixture
def command(workload):
    """Runs cuda-checkpoint with the workload's driver."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [workload.tools.cuda_checkpoint, *map(str, arguments)],
            env={**os.environ, "GPUCKPT_LIBCUDA": str(workload.tools.driver), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


# --- cuda-checkpoint ---


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_what_criu_looks_for(command, option):
    done = command(option)
    assert done.returncode == 0
    assert "--action" in done.stdout


def test_the_four_actions(workload, command):
    pid = workload.start().pids[0]
    digest = workload.ask(0)["digest"]
    for action, state in [
        ("lock", "locked"),
        ("checkpoint", "checkpointed"),
        ("restore", "locked"),
        ("unlock", "running"),
    ]:
        done = command("--action", action, "--pid", pid)
        assert (done.returncode, done.stderr) == (0, "")
        assert command("--get-state", "--pid", pid).stdout == f"{state}\n"
    assert workload.ask(0)["digest"] == digest


def test_a_locked_process_waits(workload, command):
    """The fake blocks CUDA calls as CUDA does: without this, "it answers" would prove nothing elsewhere."""
    pid = workload.start().pids[0]
    assert command("--action", "lock", "--pid", pid).returncode == 0
    with pytest.raises(TimeoutError):
        workload.ask(0, timeout_s=0.5)
    assert command("--action", "unlock", "--pid", pid).returncode == 0
    assert workload.ask(0)["digest"]


def test_toggle_goes_there_and_back(workload, command):
    pid = workload.start().pids[0]
    digest = workload.ask(0)["digest"]
    assert command("--toggle", "--pid", pid).returncode == 0
    assert command("--get-state", "--pid", pid).stdout == "checkpointed\n"
    assert not list(workload.gpu.glob("memory.*"))
    assert command("--toggle", "--pid", pid).returncode == 0
    assert workload.ask(0)["digest"] == digest


def test_toggle_refuses_a_locked_process(workload, command):
    pid = workload.start().pids[0]
    command("--action", "lock", "--pid", pid)
    done = command("--toggle", "--pid", pid)
    assert done.returncode == 1
    assert "is locked: only a running or checkpointed process can be toggled" in done.stderr


def test_a_failed_toggle_unlocks_again(workload, command):
    pid = workload.start().pids[0]
    done = command("--toggle", "--pid", pid, GPUCKPT_FAKE_FAULTS="checkpoint:*:2")
    assert done.returncode == 1
    assert "checkpoint of pid" in done.stderr
    assert "CUDA_ERROR_OUT_OF_MEMORY" in done.stderr
    assert command("--get-state", "--pid", pid).stdout == "running\n"


def test_the_restore_thread_is_a_thread_of_the_process(workload, command):
    pid = workload.start().pids[0]
    tid = command("--get-restore-tid", "--pid", pid).stdout.strip()
    assert tid in os.listdir(f"/proc/{pid}/task")
    # CRIU's plugin asks for the state with that number.
    assert command("--get-state", "--pid", tid).stdout == "running\n"


def test_a_process_without_cuda(command):
    for question in ("--get-state", "--get-restore-tid"):
        done = command(question, "--pid", os.getpid())
        assert done.returncode == 1
        assert done.stdout == ""
        assert "CUDA_ERROR_NOT_INITIALIZED" in done.stderr


def test_a_device_map(workload, command):
    pid = workload.start().pids[0]
    command("--action", "lock", "--pid", pid)
    command("--action", "checkpoint", "--pid", pid)
    restore = ("--action", "restore", "--pid", pid, "--device-map")
    assert command(*restore, f"{OTHER_GPU}={GPU}").returncode == 1
    old = command(*restore, f"{GPU}={OTHER_GPU}", GPUCKPT_FAKE_VERSION="12080")
    assert old.returncode == 1
    assert "needs driver 580" in old.stderr
    assert command(*restore, f"{GPU}={OTHER_GPU},{OTHER_GPU}={GPU}").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name an operation"),
        (["--get-state"], "--pid is missing"),
        (["--get-state", "--pid", "x"], "--pid 'x' is not a number"),
        (["--get-state", "--pid", "-5"], "--pid '-5' is not a number"),
        (["--get-state", "--pid", "99999999999"], "is not a number"),
        (["--get-state", "--toggle", "--pid", "1"], "one operation only"),
        (["--action", "freeze", "--pid", "1"], "--action must be lock, checkpoint, restore or unlock"),
        (["--action", "unlock", "--pid", "1", "--timeout", "5"], "--timeout is for --action lock only"),
        (["--action", "lock", "--pid", "1", "--device-map", "a=b"], "--device-map is for --action restore only"),
        (["--action", "restore", "--pid", "1", "--device-map", f"{GPU}"], "not of the form OLDUUID=NEWUUID"),
        (["--action", "restore", "--pid", "1", "--device-map", f"{GPU}={GPU},"], "not of the form OLDUUID=NEWUUID"),
        (["--get-state", "--pid", "1", "more"], "unexpected argument"),
        (["--frobnicate"], "unrecognized option"),
        (["--get-state", "--pid", "4194305"], "no such process"),
    ],
)
def test_wrong_arguments(command, arguments, message):
    done = command(*arguments)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    ("library", "message"),
    [("/nonexistent/libcuda.so.1", "cannot open the NVIDIA driver library"), ("old", "needs driver 570 or newer")],
)
def test_no_usable_driver(command, tools, library, message):
    done = command(
        "--get-state", "--pid", os.getpid(), GPUCKPT_LIBCUDA=str(tools.old_driver) if library == "old" else library
    )
    assert done.returncode == 1
    assert message in done.stderr


# --- gpuckpt-pool ---


class Pool:
    """gpuckpt-pool as a service, on the fake driver."""

    def __init__(self, tools, folder: Path):
        self.tools, self.folder = tools, folder
        self.status_file = folder / "pool.status"
        self.processes: list[subprocess.Popen[str]] = []

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "GPUCKPT_LIBCUDA": str(self.tools.driver), "GPUCKPT_FAKE_DIR": str(self.folder), **more}

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [self.tools.pool, *arguments, "--status-file", self.status_file],
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def status(self) -> tuple[int, str]:
        done = subprocess.run(
            [self.tools.pool, "--status", "--status-file", self.status_file],
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def wait_for(self, word: str) -> None:
        deadline = time.monotonic() + 15
        while not self.status()[1].startswith(word):
            assert time.monotonic() < deadline, self.status()
            time.sleep(0.02)

    def contexts(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("context.*"))


@pytest.fixture
def pool(tools, tmp_path):
    pool = Pool(tools, tmp_path)
    yield pool
    for process in pool.processes:
        process.kill()
        process.communicate()


def test_a_pool_holds_contexts_until_it_is_told_to_end(pool):
    assert pool.status() == (NOT_RUNNING, "not running\n")
    process = pool.start()
    pool.wait_for("ready")
    assert pool.status()[0] == 0
    assert "devices=1 contexts=1" in pool.status()[1]
    assert pool.contexts() == [f"context.{process.pid}"]

    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert pool.contexts() == []
    assert pool.status() == (NOT_RUNNING, "not running\n")


def test_a_pool_without_contexts_takes_no_gpu_memory(pool):
    pool.start("--no-contexts")
    pool.wait_for("ready")
    assert "devices=1 contexts=0" in pool.status()[1]
    assert pool.contexts() == []


def test_one_pool_only(pool):
    pool.start()
    pool.wait_for("ready")
    second = pool.start()
    assert second.wait(15) == 1
    assert "another pool holds" in second.stderr.read()
    assert pool.status()[0] == 0


@pytest.mark.parametrize(
    ("faults", "message"), [("init:*:100", "CUDA_ERROR_NO_DEVICE"), ("retain:*:2", "no context on GPU 0")]
)
def test_a_pool_that_cannot_initialise_says_so(pool, faults, message):
    process = pool.start(GPUCKPT_FAKE_FAULTS=faults)
    assert process.wait(15) == 1
    assert message in process.stdout.read()


def test_a_pool_without_a_driver_says_so(pool):
    process = pool.start(GPUCKPT_LIBCUDA="/nonexistent/libcuda.so.1")
    assert process.wait(15) == 1
    assert "cannot open the NVIDIA driver library" in process.stdout.read()


def test_a_pool_ends_although_the_driver_hangs(pool):
    process = pool.start(GPUCKPT_FAKE_FAULTS="init:*:delay=60000")
    pool.wait_for("starting")
    assert pool.status()[0] == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0


def test_a_status_file_that_cannot_be_made(pool):
    pool.status_file = pool.folder / "missing/pool.status"
    process = pool.start()
    assert process.wait(15) == 1
    assert "create its folder or name another with --status-file" in process.stderr.read()


def test_systemd_hears_that_the_pool_is_ready(pool):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(15)
        listener.bind(str(pool.folder / "notify"))
        process = pool.start(NOTIFY_SOCKET=str(pool.folder / "notify"))
        assert listener.recv(64) == b"READY=1"
        process.send_signal(signal.SIGTERM)
        assert listener.recv(64) == b"STOPPING=1"


@pytest.mark.parametrize("faults", ["", "init:*:delay=60000"])
def test_a_pool_for_one_restore_ends_with_it(pool, faults):
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [pool.tools.pool, "--once"],
        env=pool.environment(GPUCKPT_FAKE_FAULTS=faults),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
    )
    pool.processes.append(process)
    theirs.close()
    if not faults:
        ours.settimeout(15)
        assert ours.recv(256).startswith(b"ready devices=1 contexts=1 start=")
        assert pool.contexts() == [f"context.{process.pid}"]
    assert process.poll() is None
    ours.close()
    assert process.wait(15) == 0
    assert pool.contexts() == []


@pytest.mark.parametrize("arguments", [["--frobnicate"], ["more"]])
def test_a_pool_with_wrong_arguments(pool, arguments):
    process = pool.start(*arguments)
    assert process.wait(15) == 1
    assert "Usage:" in process.stderr.read()
