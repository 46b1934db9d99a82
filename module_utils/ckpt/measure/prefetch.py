# SPDX-License-Identifier: GPL-3.0-or-later
"""Staged weights on their way to the GPU during a restore: the server's own program brings them, as a companion."""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ..criu.choice import Criu
from ..errors import CkptError
from ..server.spec import ServerSpec
from ..system.commands import Commands, system_environment, tail
from .companion import READY_LIMIT_S, Companion
from .results import Phases

# with it the program makes its context before the clock starts, and says `standby` then
STANDBY = "--standby"
END_LIMIT_S = 5.0


@dataclass
class Prefetch:
    """One weights file and the program that brings it to the GPU."""

    program: Companion
    weights: str
    commands: Commands

    def begin(self) -> float:
        """Starts the copy; returns the moment on the monotonic clock. Raises CkptError (bad_input)."""
        began = time.monotonic()
        if self.program.process is None:
            self.program.start(self.commands)
        else:
            self.program.tell(self.weights)
        return began

    def finish(self) -> Phases:
        """Ends it; returns its spans on the monotonic clock.

        :raises CkptError: runtime_failed, where the server did not take what was brought: the measurement did not include
            a prefetch then.
        """
        said, complaint = self.program.last_words()
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
        return Phases({"prefetch-context": (start, context), "prefetch-copy": (context, end)})


def staged_files(spec: ServerSpec) -> set[str]:
    """Weights files that lie in the server's staging folder."""
    return set(glob.glob(f"{glob.escape(spec.staging_dir)}/weights-*.bin")) if spec.staging_dir else set()


@contextmanager
def ready(
    spec: ServerSpec, criu: Criu, files: Sequence[str], commands: Commands, standby: bool
) -> Iterator[list[Prefetch]]:
    """The programs that bring weights files to the GPU, to be begun within; with `standby` they have their contexts already.

    :raises CkptError: images_missing (the checkpoint has no staged weights), bad_input, timeout or runtime_failed (a program
        that cannot be started, or does not get ready)
    """
    if not files:
        raise CkptError("images_missing", "the checkpoint names no staged weights to prefetch; take it again.")
    environment = system_environment(criu.environment())
    fetching = [
        Prefetch(_program(spec, environment, _standby(path) if standby else [path]), path, commands) for path in files
    ]
    try:
        for one in fetching if standby else []:
            one.program.start(commands)
            one.program.wait_ready("standby", READY_LIMIT_S)
        yield fetching
    finally:
        # the server has answered by then: what it has not taken it never will
        for one in fetching:
            one.program.end()


def _standby(weights: str) -> list[str]:
    """Arguments with which the program makes its context on the GPU of a weights file, or on all where none is told."""
    try:
        with open(f"{os.path.splitext(weights)[0]}.json", encoding="utf-8") as stream:
            return [STANDBY, "--gpu", str(json.load(stream)["gpu"])]
    except (OSError, ValueError, KeyError, TypeError):
        return [STANDBY]


def together(found: Sequence[Phases]) -> Phases:
    """Phases of several programs at a time: from the first one's start to the last one's end."""
    spans = [one.spans for one in found]
    return Phases(
        {
            name: (min(one[name][0] for one in spans), max(one[name][1] for one in spans))
            for name in (spans[0] if spans else ())
        }
    )


def _program(spec: ServerSpec, environment: dict[str, str], arguments: list[str]) -> Companion:
    return Companion(
        name="the program that prefetches weights",
        option="prefetch",
        argv=[*spec.prefetch, *arguments],
        environment=environment,
        absent=("bad_input", "correct server.prefetch"),
        end_limit_s=END_LIMIT_S,
    )
