# SPDX-License-Identifier: GPL-3.0-or-later
"""Small programs that hold one thing, and real CRIU on them, with the options of the runtime `process`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ansible.module_utils.ckpt.checkpoints import preflight
from ansible.module_utils.ckpt.criu.choice import Criu

PATIENCE_S = 30.0
STOCK = Criu("stock", {"CRIU_MAPPED_RESTORE": "0"})
# In front of each program: system calls by number (x86-64), and a child that does something and stays.
PRELUDE = """
import ctypes, fcntl, mmap, os, select, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
here = os.path.dirname(sys.argv[1])
def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def unshare(flags):
    call(272, flags)
def child(work=lambda: None):
    done, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(done)
        work()
        os.write(tell, b"ok")
        os.close(tell)
        while True:
            time.sleep(1)
    os.close(tell)
    said = os.read(done, 2)
    os.close(done)
    if said != b"ok":
        raise OSError("the child ended")
    return pid
def leave_a_thread():
    threading.Thread(target=lambda: time.sleep(1000)).start()
    call(60, 0)
"""
# Behind it: what shows that it lives.
SERVE = """
while True:
    with open(sys.argv[1], "w") as beat:
        beat.write(str(time.monotonic()))
    time.sleep(0.02)
"""
Begin = Callable[[str], "Program"]


@dataclass
class Program:
    """A running program. `said` is what CRIU said last."""

    process: subprocess.Popen[bytes]
    folder: Path
    said: str = ""

    @property
    def pid(self) -> int:
        """Its number, the same after a restore."""
        return self.process.pid

    def serves(self) -> bool:
        """Whether it beats again within a while."""
        beat = self.folder / "beat"
        beat.unlink(missing_ok=True)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and os.path.exists(f"/proc/{self.pid}"):
            if beat.exists():
                return True
            time.sleep(0.01)
        return False

    def dump(self, images: Path, criu: Criu = STOCK) -> bool:
        """Whether CRIU could dump it; it has ended then."""
        images.mkdir()
        dumped = self._criu(criu, "dump", images, "--tree", str(self.pid))
        if dumped:
            self.reap()
        return dumped

    def restore(self, images: Path, criu: Criu = STOCK) -> bool:
        """Whether CRIU could restore it, and it serves."""
        return self._criu(criu, "restore", images, "--restore-detached") and self.serves()

    def end(self) -> None:
        """Ends its processes, whether they are ours or restored."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.reap()

    def reap(self) -> None:
        """Collects its processes when they end: its number is free then, as a group's too."""
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-self.pid, 0)

    def _criu(self, criu: Criu, action: str, images: Path, *options: str) -> bool:
        command = [criu.files.binary, action, "--images-dir", str(images), "--timeout", "5", *options]
        command += ["--ext-unix-sk", "--file-locks", "--link-remap", "--manage-cgroups=ignore", "--network-lock=skip"]
        command += ["--ghost-limit", str(preflight.GHOST_LIMIT_BYTES)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=criu.environment())
        self.said = done.stderr
        return done.returncode == 0
