# SPDX-License-Identifier: GPL-3.0-or-later
"""A real checkpoint of a process of our own, to see whether CRIU works with this kernel."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

from ..system.commands import Commands
from ..system.procfs import adopt_orphans, wait_gone
from . import Verdict, fail, ok

# Answers every connection with one line and closes it; prints its port when it listens.
LISTENER = """
import os, socket, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
null = os.open("/dev/null", os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)
while True:
    peer, _ = server.accept()
    peer.sendall(b"alive")
    peer.close()
"""
HARMLESS = "RLIMIT_NOFILE"
TIMEOUT_S = 20.0


def try_listener(criu: str, commands: Commands, workdir: str) -> Verdict:
    """Dumps and restores a listening process, asks it before and after, and leaves nothing behind."""
    images = tempfile.mkdtemp(prefix="gpuckpt-doctor-", dir=workdir)
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENER], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        port = _port_of(process)
        if port is None:
            return fail(
                f"the process to be dumped does not listen within {TIMEOUT_S:g} s",
                "The node is overloaded, or its loopback interface is down: `ip link set lo up`.",
            )
        return _try(criu, commands, images, process, port)
    finally:
        _end(process)
        shutil.rmtree(images, ignore_errors=True)


def _port_of(process: subprocess.Popen[bytes]) -> int | None:
    """The port that the listener says; None if it says none in time. It writes its line at once."""
    assert process.stdout is not None
    with process.stdout as said:
        if not select.select([said], [], [], TIMEOUT_S)[0]:
            return None
        return int(said.readline() or 0) or None


def _try(criu: str, commands: Commands, images: str, process: subprocess.Popen[bytes], port: int) -> Verdict:
    # No firewall is needed to keep a listener's peers quiet, and a node may have none.
    common = ["--images-dir", images, "--shell-job", "--network-lock", "skip"]
    started = time.monotonic()
    dump = commands.run([criu, "dump", "--tree", str(process.pid), "--log-file", "dump.log", *common], TIMEOUT_S)
    if dump.rc != 0:
        return _failure("dump", images, "Install a CRIU that knows this kernel: provision.yml builds one.")
    try:
        process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return fail("the process does not end although CRIU has dumped it", "It hangs in the kernel: see dmesg.")
    wait_gone([process.pid])
    # ours to reap at the end: PID 1 may take more than a second
    adopt_orphans()
    restore = commands.run([criu, "restore", "--restore-detached", "--log-file", "restore.log", *common], TIMEOUT_S)
    if restore.rc != 0:
        return _failure("restore", images, "The lines above name the cause; the same CRIU dumped the process.")
    if not _answers(port):
        return fail(
            "restored, but it does not answer on its port",
            "Look at this kernel's and CRIU's versions: the socket was lost.",
        )
    return ok(f"works ({time.monotonic() - started:.2f} s)")


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
            return peer.recv(16) == b"alive"
    except OSError:
        return False


def _failure(verb: str, images: str, fix: str) -> Verdict:
    try:
        with open(os.path.join(images, f"{verb}.log"), encoding="utf-8", errors="replace") as log:
            errors = [line.strip() for line in log if "Error (" in line and HARMLESS not in line]
    except OSError:
        errors = []
    return fail(f"{verb} failed: {' | '.join(errors[:3]) or 'CRIU wrote no error to its log'}", fix)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process, whether it is still ours or was restored under the same pid."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    if process.returncode is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(TIMEOUT_S)
    else:
        wait_gone([process.pid])
