# SPDX-License-Identifier: GPL-3.0-or-later
"""Staged weights on their way to the GPU beside a restore: the server's own program brings them, the clock runs meanwhile."""

from __future__ import annotations

import glob
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ansible.module_utils.ckpt.commands import Commands, system_environment, tail
from ansible.module_utils.ckpt.criu import Criu
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.spec import ServerSpec

END_LIMIT_S = 5.0  # the server has answered by then: what it has not taken it never will


@dataclass
class Prefetch:
    """One weights file that is brought to the GPU. `started` is a moment on the monotonic clock."""

    weights: str
    process: subprocess.Popen[str]
    started: float

    def finish(self) -> dict[str, tuple[float, float]]:
        """End it; returns its spans on the monotonic clock.

        :raises CkptError: runtime_failed, where the server did not take what was brought: then the restore was none beside it.
        """
        try:
            said, complaint = self.process.communicate(timeout=END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            said, complaint = self.process.communicate()
        words = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
        if "taken" not in words:
            lines = tail(complaint)
            cause = lines[-1].strip() if lines else f"it ended with status {self.process.returncode} without a word"
            raise CkptError(
                "runtime_failed",
                f"the weights {self.weights} were not prefetched, the server read them itself: {cause}. Mend that, or leave "
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
def beside(spec: ServerSpec, criu: Criu, files: Sequence[str], commands: Commands) -> Iterator[list[Prefetch]]:
    """Bring weights files to the GPU within. The programs end with the pipe to us, so not even a killed module leaves one.

    :raises CkptError: images_missing (the checkpoint has none), or bad_input (the program cannot be started)
    """
    if not files:
        raise CkptError("images_missing", "the checkpoint names no staged weights to prefetch; take it again.")
    running: list[Prefetch] = []
    try:
        for path in files:
            running.append(_start(spec, criu, path, commands))
        yield running
    finally:
        for one in running:
            if one.process.poll() is None:
                one.process.kill()
                one.process.communicate()


def _start(spec: ServerSpec, criu: Criu, path: str, commands: Commands) -> Prefetch:
    argv = [*spec.prefetch, path]
    commands.actions.append(argv)
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=system_environment(criu.environment()),
            cwd=os.sep,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise CkptError(
            "bad_input", f"server.prefetch ({argv[0]}) cannot be started: {error.strerror}; correct it."
        ) from None
    return Prefetch(path, process, started)
