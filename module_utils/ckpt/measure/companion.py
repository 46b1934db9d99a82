# SPDX-License-Identifier: GPL-3.0-or-later
"""A process next to a restore, which does for it what a service of the node would do."""

from __future__ import annotations

import os
import select
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field

from ..errors import CkptError
from ..system.commands import Commands, tail

# cuInit of a node with many GPUs and without persistence mode takes seconds for each of them.
READY_LIMIT_S = 60.0


@dataclass
class Companion:
    """A program that is started, told to be ready, and ended together with what it accompanies.

    Its standard streams are pipes to this process. They end with it, so not even a killed module leaves a companion.

    :param name: what it is called in messages
    :param option: the module's option that asks for it
    :param argv: the program and its arguments
    :param environment: the program's whole environment
    :param absent: reason and fix where the program cannot be started
    :param end_limit_s: how long its end may take, in seconds, before it is killed
    """

    name: str
    option: str
    argv: list[str]
    environment: dict[str, str]
    absent: tuple[str, str]
    end_limit_s: float
    process: subprocess.Popen[bytes] | None = None
    _said: bytes = field(default=b"", init=False)

    def start(self, commands: Commands) -> None:
        """Starts it, and remembers that. Raises CkptError (the reason in `absent`)."""
        commands.actions.append(self.argv)
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                self.argv, stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment, cwd=os.sep
            )
        except OSError as error:
            reason, fix = self.absent
            raise CkptError(
                reason,
                f"{self.name} ({self.argv[0]}) cannot be started ({error.strerror}); {fix}, or leave {self.option} out.",
            ) from None

    def wait_ready(self, word: str, limit_s: float = READY_LIMIT_S) -> None:
        """Until a line on its standard output begins with the word.

        :raises CkptError: timeout (not within `limit_s` seconds), runtime_failed (it ended, or says no more)
        """
        deadline = time.monotonic() + limit_s
        # not by line: half a line would be waited for without end
        while not any(line.split()[:1] == [word.encode()] for line in self._said.split(b"\n")[:-1]):
            if not select.select([self._stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise CkptError(
                    "timeout",
                    f"{self.name} was not ready within {limit_s:g} s: the driver does not finish its initialisation; "
                    f"see whether nvidia-smi answers and what dmesg says, or leave {self.option} out.",
                )
            piece = os.read(self._stdout, 4096)
            if not piece:
                raise self._not_ready()
            self._said += piece

    def tell(self, line: str) -> None:
        """One line on its standard input. If it has died meanwhile, its last words show that."""
        assert self.process is not None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{line}\n".encode("utf-8", "surrogateescape"))
            self.process.stdin.flush()

    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def last_words(self) -> tuple[str, str]:
        """All that it says on standard output and error until it ends, which it is made to."""
        assert self.process is not None
        for _ in range(2):
            try:
                said, complaint = self.process.communicate(timeout=self.end_limit_s)
                return (self._said + said).decode("utf-8", "replace"), complaint.decode("utf-8", "replace")
            except subprocess.TimeoutExpired:
                self.process.kill()
        return "", f"it hangs in the GPU's driver (pid {self.process.pid}); see dmesg"

    def end(self) -> bool:
        """Makes it end, whatever it does. False if it hangs in the kernel; it is not waited for without end."""
        if self.process is None:
            return True
        if self.process.poll() is None:
            self.process.terminate()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            # what it was told and did not read is lost with it
            with suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()
        for _ in range(2):
            try:
                self.process.wait(self.end_limit_s)
                return True
            except subprocess.TimeoutExpired:
                self.process.kill()
        return False

    @property
    def _stdout(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def _not_ready(self) -> CkptError:
        said, complaint = self.last_words()
        lines = tail(said) or tail(complaint)
        cause = lines[-1].strip().removeprefix("failed ") if lines else "it ended without a word"
        return CkptError(
            "runtime_failed",
            f"{self.name} cannot initialise the GPUs: {cause}; fix that (ansible-playbook doctor.yml may tell more), "
            f"or leave {self.option} out.",
            lines,
        )
