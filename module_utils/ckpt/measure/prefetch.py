# SPDX-License-Identifier: GPL-3.0-or-later
"""Staged weights on their way to the GPU beside a restore: the server's own program brings them, the clock runs meanwhile."""

from __future__ import annotations

import glob
import os
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..criu.choice import Criu
from ..errors import CkptError
from ..server.spec import ServerSpec
from ..system.commands import Commands, system_environment, tail

STANDBY_LIMIT_S = 60.0  # cuInit of a node with many GPUs and without persistence mode takes seconds for each of them
END_LIMIT_S = 5.0  # the server has answered by then: what it has not taken it never will


@dataclass
class Prefetch:
    """One weights file and the program that brings it to the GPU."""

    argv: list[str]
    environment: dict[str, str]
    weights: str
    process: subprocess.Popen[str] | None = None

    def stand_by(self) -> None:
        """Start the program, and let it make its context beforehand. Raises CkptError (bad_input, runtime_failed)."""
        self.process = self._start([*self.argv, "--standby"])
        assert self.process.stdout is not None
        answered = select.select([self.process.stdout], [], [], STANDBY_LIMIT_S)[0]
        # not by line: half a line would be waited for without end
        if not answered or os.read(self.process.stdout.fileno(), 64).strip() != b"standby":
            complaint = tail(self._last_words()[1])
            raise CkptError(
                "runtime_failed",
                f"the program that prefetches weights cannot initialise the GPUs: {(complaint or ['no answer'])[-1].strip()}; "
                "fix that (ansible-playbook doctor.yml may tell more), or leave prefetch out.",
                complaint,
            )

    def begin(self) -> float:
        """Start the copy; returns the moment on the monotonic clock. Raises CkptError (bad_input)."""
        began = time.monotonic()
        if self.process is None:
            self.process = self._start([*self.argv, self.weights])
        else:
            assert self.process.stdin is not None
            # one that has died meanwhile is found out in the end
            with suppress(BrokenPipeError):
                self.process.stdin.write(f"{self.weights}\n")
                self.process.stdin.flush()
        return began

    def end(self) -> None:
        """Kill it if it is still there. One that hangs in the GPU's driver is not waited for without end."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(END_LIMIT_S)

    def _last_words(self) -> tuple[str, str]:
        """What it says on standard output and error until it ends, which it is made to."""
        assert self.process is not None
        for _ in range(2):
            try:
                said, complaint = self.process.communicate(timeout=END_LIMIT_S)
                return said, complaint
            except subprocess.TimeoutExpired:
                self.process.kill()
        return "", f"it hangs in the GPU's driver (pid {self.process.pid}); see dmesg"

    def _start(self, argv: list[str]) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        try:
            return subprocess.Popen(
                argv,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env=self.environment,
                cwd=os.sep,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise CkptError(
                "bad_input", f"server.prefetch ({argv[0]}) cannot be started: {error.strerror}; correct it."
            ) from None

    def finish(self) -> dict[str, tuple[float, float]]:
        """End it; returns its spans on the monotonic clock.

        :raises CkptError: runtime_failed, where the server did not take what was brought: then the restore was none beside it.
        """
        said, complaint = self._last_words()
        words = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
        if "taken" not in words:
            lines = tail(complaint)
            cause = lines[-1].strip() if lines else "the program that prefetches ended without a word"
            raise CkptError(
                "runtime_failed",
                f"the weights {self.weights} were not prefetched, the server read them itself: {cause}. Fix that, or leave "
                "prefetch out.",
                lines,
            )
        moments = dict(word.split("=", 1) for word in words["ready"])
        start, context, end = (float(moments[name]) for name in ("start", "context", "end"))
        return {"prefetch-context": (start, context), "prefetch-copy": (context, end)}


def staged_files(spec: ServerSpec) -> set[str]:
    """Weights files that lie in the server's staging folder."""
    return set(glob.glob(f"{glob.escape(spec.staging_dir)}/weights-*.bin")) if spec.staging_dir else set()


def require(spec: ServerSpec, slimming: str) -> None:
    """Raises CkptError (bad_input) where there is nothing that could be prefetched."""
    if not spec.prefetch or slimming != "staged":
        raise CkptError(
            "bad_input",
            f"prefetch brings staged weights, and needs slimming `staged` (it is `{slimming}`) and server.prefetch, the program "
            f"that does it ({'given' if spec.prefetch else 'missing'}); set both, or leave prefetch out.",
        )


@contextmanager
def beside(
    spec: ServerSpec, criu: Criu, files: Sequence[str], commands: Commands, standby: bool
) -> Iterator[list[Prefetch]]:
    """The programs that bring weights files to the GPU, to be begun within; with `standby` they have their contexts already.

    They end with the pipe to us, so not even a killed module leaves one.

    :raises CkptError: images_missing (the checkpoint has no staged weights), bad_input or runtime_failed (a start that fails)
    """
    if not files:
        raise CkptError("images_missing", "the checkpoint names no staged weights to prefetch; take it again.")
    commands.actions += [[*spec.prefetch, *(["--standby"] if standby else [path])] for path in files]
    all_of_them = [Prefetch(spec.prefetch, system_environment(criu.environment()), path) for path in files]
    try:
        if standby:
            for one in all_of_them:
                one.stand_by()
        yield all_of_them
    finally:
        for one in all_of_them:
            one.end()
