# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests ask of programs on the fake GPU, and of their checkpoints."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def state(workload, pid: int) -> str:
    """The CUDA state of a process, asked by the command under test elsewhere."""
    done = subprocess.run(
        [workload.tools.cuda_checkpoint, "--get-state", "--pid", str(pid)],
        env={**os.environ, **workload.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def memory_files(workload) -> list[str]:
    return sorted(path.name for path in workload.gpu.glob("memory.*"))


def assert_lives(workload, digests: list[str]) -> None:
    """Every process runs, its CUDA calls return, and its GPU memory is what it was."""
    assert workload.alive() == workload.pids
    assert [state(workload, pid) for pid in workload.pids] == ["running"] * len(workload.pids)
    assert workload.digests() == digests


def ranges_of(images: Path, pid: int) -> list[tuple[int, int]]:
    lines = (images / f"cuda-ranges-{pid}.txt").read_text().splitlines()
    return [(int(start, 16), int(end, 16)) for start, end in (line.split("-") for line in lines)]
