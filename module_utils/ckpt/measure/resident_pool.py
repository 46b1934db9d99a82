# SPDX-License-Identifier: GPL-3.0-or-later
"""The resident context pool: a companion that keeps the driver initialised, as gpuckpt-pool.service does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..criu.choice import Criu
from ..errors import CkptError
from ..system.commands import Commands, system_environment
from .companion import READY_LIMIT_S, Companion

# the end of a driver takes longer than that of other programs
END_LIMIT_S = 10.0


@contextmanager
def running(criu: Criu, commands: Commands, ready_limit_s: float = READY_LIMIT_S) -> Iterator[None]:
    """Keeps the node's GPUs initialised within: the pool is ready at the beginning and gone at the end.

    It holds no context.

    :param ready_limit_s: seconds after which a pool that is not ready is given up
    :raises CkptError: criu_missing, runtime_failed (it cannot initialise the GPUs, ended early or does not end) or timeout
    """
    pool = Companion(
        name="the resident pool",
        option="resident_pool",
        argv=[criu.files.pool, "--once", "--no-contexts"],
        environment=system_environment(criu.environment()),
        absent=("criu_missing", "build it with provision.yml"),
        end_limit_s=END_LIMIT_S,
    )
    try:
        pool.start(commands)
        pool.wait_ready("ready", ready_limit_s)
        yield
        if pool.status() is not None:
            raise CkptError(
                "runtime_failed",
                f"the resident pool ended (status {pool.status()}) while the restore ran, so the measurement did not "
                "include a pool; find out what ended it (dmesg), then measure again.",
            )
    finally:
        if not pool.end():
            assert pool.process is not None
            raise CkptError(
                "runtime_failed",
                f"the resident pool (pid {pool.process.pid}) does not end although it was killed; it hangs in the GPU's "
                "driver: see dmesg.",
            )
