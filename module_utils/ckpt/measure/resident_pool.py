# SPDX-License-Identifier: GPL-3.0-or-later
"""The resident context pool: a process beside the restore that keeps the driver initialised, as gpuckpt-pool.service does."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..criu.choice import Criu
from ..errors import CkptError
from ..system.commands import Commands, system_environment, tail

# cuInit of a node with many GPUs and without persistence mode takes seconds for each of them.
READY_LIMIT_S = 60.0
END_LIMIT_S = 10.0
BUILD = "patched"


def require_build(criu: Criu) -> None:
    """Raises CkptError (bad_input) for a build that is measured as it is, with nothing beside it."""
    if criu.build != BUILD:
        raise CkptError(
            "bad_input",
            f"resident_pool belongs to the build `{BUILD}`, and criu.build is `{criu.build}`; "
            f"set criu.build: {BUILD}, or leave resident_pool out.",
        )


@contextmanager
def beside(criu: Criu, commands: Commands, ready_limit_s: float = READY_LIMIT_S) -> Iterator[None]:
    """Keep the node's GPUs initialised within: the pool is ready at the beginning and gone at the end.

    It holds no context. It ends with our end of its standard output, so it outlives not even a killed module.

    :param ready_limit_s: seconds after which a pool that is not ready is given up
    :raises CkptError: criu_missing, runtime_failed (it cannot initialise the GPUs, or ended early) or timeout
    """
    pool = _start(criu, commands)
    try:
        _wait_ready(pool, ready_limit_s)
        yield
        if pool.poll() is not None:
            raise CkptError(
                "runtime_failed",
                f"the resident pool ended (status {pool.returncode}) while the restore ran, so what was measured is none "
                "beside a pool; find out what ended it (dmesg), then measure again.",
            )
    finally:
        _end(pool)


def _start(criu: Criu, commands: Commands) -> subprocess.Popen[bytes]:
    argv = [criu.files.pool, "--once", "--no-contexts"]
    commands.actions.append(argv)
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=system_environment(criu.environment()),
        )
    except OSError as error:
        raise CkptError(
            "criu_missing",
            f"the resident pool {criu.files.pool} cannot be started ({error.strerror}); build it with provision.yml, "
            "or leave resident_pool out.",
        ) from None


def _wait_ready(pool: subprocess.Popen[bytes], limit_s: float) -> None:
    """Until the pool says that it is ready; it says one line, what failed if something did."""
    assert pool.stdout is not None
    deadline = time.monotonic() + limit_s
    said = b""
    while not any(line.startswith(b"ready ") for line in said.splitlines()):
        if not select.select([pool.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise CkptError(
                "timeout",
                f"the resident pool was not ready within {limit_s:g} s: the driver does not finish its initialisation; "
                "see whether nvidia-smi answers and what dmesg says, or leave resident_pool out.",
            )
        piece = os.read(pool.stdout.fileno(), 4096)
        if not piece:
            lines = tail(said.decode("utf-8", "replace"))
            cause = lines[-1].removeprefix("failed ") if lines else "it ended without a word"
            raise CkptError(
                "runtime_failed",
                f"the resident pool cannot initialise the GPUs: {cause}; fix that (ansible-playbook doctor.yml may "
                "tell more), or leave resident_pool out.",
                lines,
            )
        said += piece


def _end(pool: subprocess.Popen[bytes]) -> None:
    assert pool.stdout is not None
    pool.terminate()
    pool.stdout.close()
    for _ in range(2):
        try:
            pool.wait(END_LIMIT_S)
            return
        except subprocess.TimeoutExpired:
            pool.kill()
    raise CkptError(
        "runtime_failed",
        f"the resident pool (pid {pool.pid}) does not end although it was killed; it hangs in the GPU's driver: see dmesg.",
    )
