#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Try builds of CRIU for real: check the kernel, dump a process that listens on TCP, restore it, and talk to it.

Usage: checkpoint_trial.py FRONT BUILD...
Prints a JSON object: build -> {"version", "ok", "message": what it can do, or what failed and the fix}.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TIMEOUT_S = 30
MESSAGES = {
    "check": "this kernel ({kernel}) lacks what CRIU {version} needs, or root lacks a capability; `criu check --all` names it",
    "dump": "CRIU {version} cannot dump a process with a TCP listener on kernel {kernel}: "
    "it is too old for this kernel's sockets, or a capability is missing; use a newer CRIU",
    "restore": "CRIU {version} cannot restore what it dumped",
    "answer": "the process that CRIU {version} restored does not answer",
}
ANSWER = b"still here\n"
LISTENER = f"""
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
import os
null = os.open("/dev/null", os.O_RDWR)
os.dup2(null, 1)
while True:
    connection, _ = listener.accept()
    connection.sendall({ANSWER!r})
    connection.close()
"""


class TrialError(Exception):
    """A step failed; carries the step's name and the lines that say why."""

    def __init__(self, step: str, lines: list[str]) -> None:
        super().__init__(step)
        self.step = step
        self.lines = lines


class Criu:
    """One build of CRIU, reached through the front."""

    def __init__(self, front: str, build: str, images: Path) -> None:
        self.front = front
        self.images = images
        self.env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "GPUCKPT_CRIU_BUILD": build}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs one command of CRIU and returns what it printed."""
        return subprocess.run(
            [self.front, *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )

    def version(self) -> str:
        """Returns the version, or an empty string if the build cannot even tell that."""
        found = re.search(r"^Version: (\S+)", self.run("--version").stdout, re.MULTILINE)
        return found.group(1) if found else ""

    def step(self, name: str, *arguments: str) -> None:
        """Runs a step on the images; raises TrialError with CRIU's own error lines if it fails."""
        result = self.run(name, "--images-dir", str(self.images), "--log-file", f"{name}.log", "-v4", *arguments)
        if result.returncode != 0:
            log = self.images / f"{name}.log"
            text = log.read_text(errors="replace") if log.exists() else result.stderr
            raise TrialError(
                name, [line for line in text.splitlines() if "Error" in line][:10] or text.splitlines()[-5:]
            )


def check(criu: Criu) -> None:
    """Asks CRIU whether this kernel has what it needs."""
    result = criu.run("check")
    if result.returncode != 0:
        raise TrialError("check", (result.stdout + result.stderr).splitlines()[-5:])


def ask(port: int) -> bytes:
    """Connects to the listener and returns what it says, when it has closed the connection: CRIU dumps no open one."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        return b"".join(iter(lambda: connection.recv(100), b""))


def end(pid: int) -> None:
    """Kills the process group of `pid`, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def checkpoint_and_restore(criu: Criu) -> None:
    """Dumps a listener and restores it; raises TrialError unless it answers as before."""
    listener = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", LISTENER],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert listener.stdout is not None
        if not select.select([listener.stdout], [], [], TIMEOUT_S)[0]:
            raise TrialError("answer", [f"the listener to be dumped said no port within {TIMEOUT_S} s"])
        port = int(listener.stdout.readline())
        # One exchange before the dump: the server has then closed the pipe that told us its port.
        ask(port)
        criu.step("dump", "--tree", str(listener.pid))
        listener.wait(TIMEOUT_S)
        criu.step("restore", "--restore-detached")
        answer = ask(port)
        if answer != ANSWER:
            raise TrialError("answer", [f"the restored process answered {answer!r} instead of {ANSWER!r}"])
    except OSError as error:
        raise TrialError("answer", [str(error)]) from error
    finally:
        end(listener.pid)
        listener.wait(TIMEOUT_S)


def try_build(front: str, build: str) -> dict[str, Any]:
    """Tries one build and returns what was found."""
    images = Path(tempfile.mkdtemp(prefix="gpuckpt-trial-"))
    criu = Criu(front, build, images)
    failure: TrialError | None = None
    version = ""
    try:
        version = criu.version()
        check(criu)
        checkpoint_and_restore(criu)
    except TrialError as error:
        failure = error
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = TrialError("check", [str(error)])
    finally:
        shutil.rmtree(images)
    return {"version": version, "ok": failure is None, "message": describe(version, failure)}


def describe(version: str, failure: TrialError | None) -> str:
    """Says in one sentence what the build can do, or why not, with CRIU's own lines."""
    if failure is None:
        return f"CRIU {version} checkpoints and restores a process with a TCP listener"
    cause = MESSAGES[failure.step].format(version=version or "of this build", kernel=os.uname().release)
    return " | ".join([cause, *failure.lines])


def main() -> None:
    """Tries every build that was named."""
    front, *builds = sys.argv[1:]
    print(json.dumps({build: try_build(front, build) for build in builds}))


if __name__ == "__main__":
    main()
