# SPDX-License-Identifier: GPL-3.0-or-later
"""A process that holds a semaphore can be restored more than once from the same images (real CRIU)."""

import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.criu import log as criu_log
from ansible.module_utils.ckpt.criu import remaps
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.system import procfs

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
    """Runs CRIU; its log is shown if it fails."""
    argv = [f"{CRIU}/libexec/criu", action, "--images-dir", str(images), "--log-file", f"{action}.log"]
    argv += ["--link-remap", "--network-lock", "skip", *options]
    done = subprocess.run(argv, env={**os.environ, "CRIU_LIBS_DIR": f"{CRIU}/lib/criu"}, check=False)
    assert done.returncode == 0, (images / f"{action}.log").read_text(errors="replace")[-2000:]


def end(pids: list[int]) -> None:
    """Kills the processes and waits until their numbers are free."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert procfs.wait_gone(pids) == []


@pytest.fixture
def tree() -> Iterator[list[int]]:
    """A process that holds a semaphore, and those below it; what they left in shared memory is removed at the end."""
    if not os.path.exists(CRIU):
        pytest.skip(f"{CRIU} is not here: run provision.yml")
    before = set(os.listdir("/dev/shm"))
    pid = int(subprocess.check_output(["/usr/bin/python3", "-c", STARTER]))
    deadline = time.monotonic() + 30
    # the holder and Python's watch over semaphores
    while len(tree := [task.pid for task in procfs.tree(pid)]) < 2 or set(os.listdir("/dev/shm")) == before:
        assert time.monotonic() < deadline, "the semaphore was not made"
        time.sleep(0.05)
    yield tree
    for number in tree:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    for name in set(os.listdir("/dev/shm")) - before:
        Path("/dev/shm", name).unlink(missing_ok=True)


def _semaphore_of(pid: int) -> bool:
    return "/dev/shm/sem." in Path(f"/proc/{pid}/maps").read_text()


def as_nobody(script: str) -> None:
    """Runs a shell script as a user who is not root."""
    subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-euc", script], check=True)


@pytest.mark.parametrize("leave_running", [False, True])
def test_the_same_images_are_restored_twice(tree: list[int], tmp_path: Path, leave_running: bool) -> None:
    criu("dump", tmp_path, "--tree", str(tree[0]), *(["--leave-running"] if leave_running else []))
    linked = remaps.linked_back(str(tmp_path))
    assert linked, "the semaphore was not linked back: this test proves nothing"
    if leave_running:
        for path in linked:
            as_nobody(f"echo foreign >{path}")
    remaps.keep(str(tmp_path), str(tmp_path / "links"), tree if leave_running else [])
    if leave_running:
        end(tree)
        for path in linked:
            assert Path(path).read_text() == "foreign\n", "a foreign file was taken for the semaphore, or removed"
            Path(path).unlink()
    for _ in range(2):
        assert procfs.wait_gone(tree) == []
        remaps.put_back(str(tmp_path / "links"))
        criu("restore", tmp_path, "--restore-detached")
        assert not any(os.path.exists(path) for path in linked), "CRIU did not use the links up"
        end(tree)


def test_a_local_user_cannot_give_the_server_his_file(tree: list[int], tmp_path: Path) -> None:
    """Neither one of the same bytes and mode, nor a link that root would follow."""
    criu("dump", tmp_path, "--tree", str(tree[0]))
    linked = remaps.linked_back(str(tmp_path))
    links, target = tmp_path / "links", Path("/dev/shm/gpuckpt-test-target")
    remaps.keep(str(tmp_path), str(links))
    for number, path in enumerate(linked):
        kept = links / str(number)
        same = "".join(f"\\{byte:03o}" for byte in kept.read_bytes())
        same_bytes = f"printf '{same}' >{path}; chmod {stat.S_IMODE(kept.stat().st_mode):o} {path}"
        for attack in (same_bytes, f"ln -s {target} {path}"):
            as_nobody(attack)
            with pytest.raises(CkptError, match=f"{path} is in the way.*of user 65534"):
                remaps.put_back(str(links))
            assert not target.exists(), "root wrote through the user's link"
            os.unlink(path)
    assert procfs.wait_gone(tree) == []
    remaps.put_back(str(links))
    criu("restore", tmp_path, "--restore-detached")


def test_a_file_of_a_local_user_fails_the_dump_and_not_the_server(tree: list[int], tmp_path: Path) -> None:
    names = "/dev/shm/link_remap.$number"
    as_nobody(f"for number in $(seq 100); do echo foreign >{names}; done")
    with pytest.raises(AssertionError, match=r"Can't link remap to .*File exists"):
        criu("dump", tmp_path, "--tree", str(tree[0]))
    cause = criu_log.classify((tmp_path / "dump.log").read_text(errors="replace"))
    assert cause is not None
    assert cause.message.startswith("CRIU links deleted files")
    assert [task.pid for task in procfs.tree(tree[0])] == tree, "the server did not outlive the dump that failed"
    as_nobody(f"for number in $(seq 100); do test $(cat {names}) = foreign; done")
