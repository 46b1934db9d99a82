# SPDX-License-Identifier: GPL-3.0-or-later
"""Running commands: every one is remembered and limited, none reads our standard input, all speak the C locale."""

from __future__ import annotations

import os
import re
import select
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from ..errors import CkptError
from . import ending

DEFAULT_TIMEOUT_S = 300.0
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_FOUND = 127
KILLED = -9

# as exceptions of Python and faults of CUDA are named in a log
NAMED_ERROR = re.compile(r"\b[A-Za-z_.]*(?:Error|Exception)\b: |\bCUDA error\b|\bFATAL\b")
FIRST_ERRORS = 3


@dataclass(frozen=True)
class Result:
    """A finished command: exit status, decoded output, and its start and end on the monotonic clock in seconds."""

    argv: list[str]
    rc: int
    stdout: str
    stderr: str
    started: float
    ended: float


class Job:
    """A command under way, or one that has ended."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)
        # what a user can raise to allow it more time, None if nothing does
        self.limit_option: str | None = None
        self.started = time.monotonic()
        self._result: Result | None = None
        self._ended = threading.Event()

    def end(self, rc: int, stdout: str, stderr: str) -> None:
        """Stamps the end."""
        self._result = Result(self.argv, rc, stdout, stderr, self.started, time.monotonic())
        self._ended.set()

    @property
    def done(self) -> bool:
        """Whether the command has ended."""
        return self._ended.is_set()

    def ends_within(self, limit_s: float) -> bool:
        """Waits for the end, at most so long. False if the command is still under way."""
        return self._ended.wait(limit_s)

    def wait(self) -> Result:
        """Waits for the end. Raises CkptError (timeout) if the command had to be killed."""
        self._ended.wait()
        assert self._result is not None
        return self._result


class Command(Job):
    """A child process that leads a session of its own. A thread stamps its end, so that nothing else delays the stamp.

    One that fails or has to be killed takes with it what it started and left in its session. Its output goes into files:
    a pipe would be held open by whatever inherited it, and be waited for long after the command's end.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        timeout_s: float,
        stdin: str = "",
        files: tuple[int | None, int | None] = (None, None),
    ) -> None:
        super().__init__(argv)
        self._timeout_s = timeout_s
        self._timed_out = False
        out, err = _scratch_file("stdout"), _scratch_file("stderr")
        try:
            with _scratch_file("stdin") as given:
                given.write(stdin.encode("utf-8", "surrogateescape"))
                given.seek(0)
                process = subprocess.Popen(
                    self.argv,
                    stdin=given if files[0] is None else files[0],
                    stdout=out if files[1] is None else files[1],
                    stderr=err,
                    env=dict(env),
                    close_fds=True,
                    start_new_session=True,
                )
        except OSError as error:
            out.close()
            err.close()
            self.end(NOT_FOUND, "", f"{self.argv[0]}: {error.strerror}")
            return
        threading.Thread(target=self._collect, args=(process, out, err), daemon=True).start()

    def _collect(self, process: subprocess.Popen[bytes], out: IO[bytes], err: IO[bytes]) -> None:
        self._timed_out = not _ends_within(process.pid, self._timeout_s)
        rc = KILLED if self._timed_out else process.wait()
        if rc != 0:
            ending.end_all(ending.of_session(process.pid))
        self.end(rc, _text(out), _text(err))

    def wait(self) -> Result:
        """Waits for the end. Raises CkptError (timeout) if the command had to be killed."""
        result = super().wait()
        if self._timed_out:
            raise CkptError(
                "timeout",
                f"`{' '.join(self.argv[:4])} …` did not end within {self._timeout_s:g} s and was killed; "
                f"look at the log lines for what it waited for{f', or raise {self.limit_option}' if self.limit_option else ''}.",
                tail(result.stderr),
            )
        return result


class Commands:
    """Runs commands and remembers them in `actions`, in order."""

    def __init__(self) -> None:
        self.actions: list[list[str]] = []

    def start(
        self,
        argv: Sequence[str],
        timeout_s: float = DEFAULT_TIMEOUT_S,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        files: tuple[int | None, int | None] = (None, None),
    ) -> Job:
        """Starts a command without waiting for it. What it reads on standard input is remembered nowhere.

        :param files: open files that it has as standard input and output, in place of `stdin` and of the result's text
        """
        self.actions.append(list(argv))
        return Command(argv, system_environment(env), timeout_s, stdin, files)

    def run(
        self, argv: Sequence[str], timeout_s: float = DEFAULT_TIMEOUT_S, env: Mapping[str, str] | None = None
    ) -> Result:
        """Runs a command to its end; a missing program yields status 127."""
        return self.start(argv, timeout_s, env).wait()


def system_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The module's environment with the C locale and the system's PATH first."""
    environment = dict(os.environ)
    inherited = environment.get("PATH", "")
    environment.update(PATH=f"{SYSTEM_PATH}:{inherited}" if inherited else SYSTEM_PATH, LC_ALL="C.UTF-8", LANGUAGE="C")
    environment.update(extra or {})
    return environment


def tail(text: str, lines: int = 12) -> list[str]:
    """The last lines of a text that are not empty."""
    return [line for line in text.splitlines() if line.strip()][-lines:]


def end_of_log(text: str, lines: int = 12) -> list[str]:
    """The last lines of a server's log, after those that named an error first.

    A server with several processes ends with the complaint of the last one. What went wrong stands far above it.
    """
    every = [line for line in text.splitlines() if line.strip()]
    first = [line for line in every[:-lines] if NAMED_ERROR.search(line)]
    return [*first[:FIRST_ERRORS], *every[-lines:]]


def _ends_within(pid: int, limit_s: float) -> bool:
    """Waits for the end of a child, which is not collected, without delay. False if it still runs at the limit."""
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(limit_s * 1000))
    finally:
        os.close(handle)


def _scratch_file(name: str) -> IO[bytes]:
    """A file in memory, so that a full disk loses no message."""
    return open(os.memfd_create(name), "w+b", buffering=0)


def _text(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode("utf-8", "replace")
