# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that holds a semaphore can be restored more than once from the same images (real CRIU)."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ansible.module_utils.ckpt import procfs, remaps

pytestmark = pytest.mark.integration

CRIU = "/opt/gpuckpt/criu/stock"
HOLDER = "import multiprocessing, time; s = multiprocessing.get_context('spawn').Semaphore(1); time.sleep(600)"
# The parent exits at once, so that PID 1 reaps what is killed later and its number is free again.
STARTER = f"""
import subprocess
child = subprocess.Popen(["/usr/bin/python3", "-c", {HOLDER!r}], start_new_session=True, stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(child.pid)
"""


def criu(action: str, images: Path, *options: str) -> None:
    """Run CRIU; its log is shown if it fails."""
    argv = [f"{CRIU}/libexec/criu", action, "--images-dir", str(images), "--log-file", f"{action}.log"]
    argv += ["--link-remap", "--network-lock", "skip", *options]
    done = subprocess.run(argv, env={**os.environ, "CRIU_LIBS_DIR": f"{CRIU}/lib/criu"}, check=False)
    assert done.returncode == 0, (images / f"{action}.log").read_text(errors="replace")[-2000:]


def end(pids: list[int]) -> None:
    """Kill the processes and wait until their numbers are free."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert procfs.wait_gone(pids) == []


@pytest.mark.parametrize("leave_running", [False, True])
def test_the_same_images_are_restored_twice(tmp_path: Path, leave_running: bool) -> None:
    if not os.path.exists(CRIU):
        pytest.skip(f"{CRIU} is not here: run provision.yml")
    before = set(os.listdir("/dev/shm"))
    pid = int(subprocess.check_output(["/usr/bin/python3", "-c", STARTER]))
    time.sleep(1.0)
    tree = [task.pid for task in procfs.tree(pid)]
    own = set(os.listdir("/dev/shm")) - before
    try:
        criu("dump", tmp_path, "--tree", str(pid), *(["--leave-running"] if leave_running else []))
        linked = remaps.linked_back(str(tmp_path))
        assert linked, "the semaphore was not linked back: this test proves nothing"
        remaps.keep(str(tmp_path), str(tmp_path / "links"), tree if leave_running else [])
        if leave_running:
            end(tree)
        for _ in range(2):
            assert procfs.wait_gone(tree) == []
            remaps.put_back(str(tmp_path / "links"))
            criu("restore", tmp_path, "--restore-detached")
            assert not any(os.path.exists(path) for path in linked), "CRIU did not use the links up"
            end(tree)
    finally:
        for name in own:
            Path("/dev/shm", name).unlink(missing_ok=True)
