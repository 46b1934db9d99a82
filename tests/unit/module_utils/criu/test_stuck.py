# SPDX-License-Identifier: GPL-3.0-or-later
"""Real processes in the state that keeps CRIU waiting for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.criu import stuck
from ansible.module_utils.ckpt.system.commands import KILLED, Command

THREADS = """
import threading, time
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
print("has two threads", flush=True)
time.sleep(600)
"""
# traces every thread as CRIU does, kills the process, and waits for its first thread
TRACER = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
victim = int(sys.argv[1])
for thread in os.listdir(f"/proc/{victim}/task"):
    if libc.ptrace(0x4206, int(thread), 0, 0):  # PTRACE_SEIZE
        sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")
os.kill(victim, signal.SIGKILL)
os.waitpid(victim, 0x40000000)  # __WALL
"""


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of two threads."""
    with subprocess.Popen([sys.executable, "-c", THREADS], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def tracer(folder: Path, name: str, victim: int, limit_s: float) -> Command:
    """A program of this name that waits for ever for a process of two threads, which it has killed."""
    program = folder / name
    program.symlink_to(os.path.realpath(sys.executable))
    return Command([str(program), "-c", TRACER, str(victim)], os.environ, limit_s)


def test_a_criu_that_waits_for_a_killed_process_is_ended(
    victim: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stuck, "PATIENCE_S", 0.3)
    result = stuck.wait(tracer(tmp_path, "criu", victim.pid, 20.0), [victim.pid])
    assert result.rc == KILLED, result.stderr
    assert victim.wait(10) == KILLED, "its parent could collect it"


def test_another_tracer_is_left_alone(
    victim: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stuck, "PATIENCE_S", 0.1)
    debugger = tracer(tmp_path, "debugger", victim.pid, 2.0)
    stuck.wait(Command(["sleep", "1"], os.environ, 10.0), [victim.pid])
    assert not debugger.done
