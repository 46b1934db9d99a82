# SPDX-License-Identifier: GPL-3.0-or-later
"""A CRIU that waits for ever, since a process that it dumps was killed.

The kernel tells the end of a process's first thread when all its other threads have been collected. CRIU traces them all,
so nobody else collects them, and it waits for the first one first. Seen in 3 of 123 dumps whose server was killed at a
random moment (docs/faults.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..system import ending, procfs
from ..system.commands import Job, Result

# what CRIU's processes are called
COMM = "criu"
# CRIU ends within milliseconds of a process that it dumps, or never
PATIENCE_S = 2.0


def wait(dump: Job, pids: Sequence[int]) -> Result:
    """Waits for a dump of these processes, and ends its CRIU if one of them has ended and is not collected.

    Raises CkptError (timeout) if the command had to be killed at its own limit.
    """
    waits: set[int] = set()
    while not dump.ends_within(PATIENCE_S):
        tracers = {tracer for pid in pids if (tracer := procfs.tracer_of_the_dead(pid))}
        for tracer in waits & tracers:
            ending.end_all(_is_criu(tracer))
        waits = tracers
    return dump.wait()


def _is_criu(number: int) -> ending.Belongs:
    """Whether it is the CRIU of this number; a debugger that traces the server is left alone."""
    return lambda process: process.pid == number and process.comm == COMM
