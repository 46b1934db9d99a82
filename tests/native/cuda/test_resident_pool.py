# SPDX-License-Identifier: GPL-3.0-or-later
"""The resident pool as ckpt_restore runs it: the real gpuckpt-pool (AddressSanitizer, UBSan) on the fake driver."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.criu.choice import Criu
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.measure import resident_pool
from ansible.module_utils.ckpt.system.commands import Commands
from criu_harness import wait_until

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def build(tools, tmp_path, monkeypatch):
    """A build whose pool is the sanitized one."""
    pool = tmp_path / "patched/bin/gpuckpt-pool"
    pool.parent.mkdir(parents=True)
    pool.symlink_to(tools.pool)
    monkeypatch.setenv("GPUCKPT_LIBCUDA", str(tools.driver))
    monkeypatch.setenv("GPUCKPT_FAKE_DIR", str(tmp_path))
    return Criu("patched", home=str(tmp_path))


def pools(build: Criu) -> list[int]:
    """The processes, zombies too, that were started as this build's pool."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cmdline").read_bytes().split(b"\0")[0].decode() == build.files.pool:
                found.append(int(process.name))
    return found


def mapped(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def children() -> set[str]:
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def refused(build: Criu, **limits: float) -> CkptError:
    """What the pool fails with; nothing within it was run, and no process is left."""
    before, ran = children(), []
    with pytest.raises(CkptError) as caught, resident_pool.running(build, Commands(), **limits):
        ran.append(True)
    assert not ran
    assert children() == before
    return caught.value


def test_it_is_ready_before_and_gone_after(build, tools, tmp_path, monkeypatch):
    monkeypatch.setenv("GPUCKPT_FAKE_FAULTS", "init:*:delay=500")
    before, commands, start = children(), Commands(), time.monotonic()
    with resident_pool.running(build, commands):
        assert time.monotonic() - start >= 0.5, "the driver was initialised"
        [pid] = pools(build)
        assert str(tools.driver) in mapped(pid)
        assert not list(tmp_path.glob("context.*")), "it holds no context"
    assert pools(build) == []
    assert children() == before, "not even a zombie"
    assert commands.actions == [[build.files.pool, "--once", "--no-contexts"]]


def test_it_is_gone_after_an_exception(build):
    def restore_that_fails():
        with resident_pool.running(build, Commands()):
            assert len(pools(build)) == 1
            raise KeyboardInterrupt

    before = children()
    with pytest.raises(KeyboardInterrupt):
        restore_that_fails()
    assert children() == before


HOLD = """
import sys, time
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
from ansible.module_utils.ckpt.measure import resident_pool
from ansible.module_utils.ckpt.system.commands import Commands
from ansible.module_utils.ckpt.criu.choice import Criu
with resident_pool.running(Criu("patched", home=sys.argv[2]), Commands()):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_a_module_that_is_killed(build, end):
    command = [sys.executable, "-c", HOLD, ROOT / "module_utils", build.home]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as module:
        assert module.stdout.readline() == "held\n"
        [pid] = pools(build)
        module.send_signal(end)
        module.wait(15)
        # It falls to us, for CRIU's tests are a subreaper.
        assert wait_for_end(pid) == 0


def wait_for_end(pid: int) -> int:
    ended: list[int] = []

    def gone() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG)
        ended.extend([os.waitstatus_to_exitcode(status)] if found else [])
        return bool(ended)

    wait_until(gone, "the end of the pool", 15)
    return ended[0]


def test_a_pool_that_does_not_become_ready(build, monkeypatch):
    monkeypatch.setenv("GPUCKPT_FAKE_FAULTS", "init:*:delay=60000")
    error = refused(build, ready_limit_s=0.5)
    assert error.reason == "timeout"
    assert "not ready within 0.5 s" in error.message


@pytest.mark.parametrize(
    ("variable", "value", "cause"),
    [
        (
            "GPUCKPT_FAKE_FAULTS",
            "init:*:100",
            "cannot initialise the GPUs: the driver cannot be initialised: CUDA_ERROR_NO_DEVICE",
        ),
        ("GPUCKPT_LIBCUDA", "/nonexistent/libcuda.so.1", "cannot open the NVIDIA driver library"),
    ],
)
def test_a_pool_that_fails_says_why(build, monkeypatch, variable, value, cause):
    monkeypatch.setenv(variable, value)
    error = refused(build)
    assert error.reason == "runtime_failed"
    assert cause in error.message


def test_a_build_without_a_pool(build):
    Path(build.files.pool).unlink()
    error = refused(build)
    assert error.reason == "criu_missing"
    assert "cannot be started (No such file or directory)" in error.message


def test_a_pool_that_ends_early_makes_no_measurement(build):
    def measure():
        with resident_pool.running(build, Commands()):
            [pid] = pools(build)
            os.kill(pid, signal.SIGTERM)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    before = children()
    with pytest.raises(CkptError, match=r"ended \(status 0\) while the restore ran") as caught:
        measure()
    assert caught.value.reason == "runtime_failed"
    assert children() == before
