# SPDX-License-Identifier: GPL-3.0-or-later
"""What the preflight refuses CRIU really cannot bring back, and what it lets through CRIU does bring back."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.checkpoints import preflight
from ansible.module_utils.ckpt.system import procfs
from programs import Begin, Program
from support import STOCK, Call, Result

pytestmark = pytest.mark.integration
NEW = {"mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "net": 0x40000000}
REFUSED = {
    "nested_mounts": f"child(lambda: unshare({NEW['mnt']}))",
    "nested_network": f"child(lambda: unshare({NEW['net']}))",
    "nested_namespace cgroup": f"child(lambda: unshare({NEW['cgroup']}))",
    "nested_namespace uts": f"child(lambda: unshare({NEW['uts']}))",
    "nested_namespace ipc": f"child(lambda: unshare({NEW['ipc']}))",
    "nested_namespace user": f"child(lambda: unshare({NEW['user']}))",
    "nested_namespace pid": "unshare(0x20000000); child()",
    "nested_namespace time": "unshare(0x80)",
    "anonymous_inode userfaultfd": "held = call(323, 0o2000001)",
    "anonymous_inode perf": "held = call(298, struct.pack('IIQ', 1, 112, 0).ljust(112, b'\\0'), 0, -1, -1, 0)",
    "anonymous_inode bpf": "held = call(321, 0, struct.pack('IIII', 2, 4, 4, 4).ljust(72, b'\\0'), 72)",
    "anonymous_inode landlock": "held = call(444, struct.pack('Q', 1), 8, 0)",
    "io_uring": "held = call(425, 4, (ctypes.c_char * 120)())",
    "io_uring mapped": "held = call(425, 4, (ctypes.c_char * 120)()); ring = mmap.mmap(held, 4096); os.close(held)",
    "secret_memory": "held = call(447, 0)",
    "secret_memory mapped": "held = call(447, 0); os.ftruncate(held, 4096); m = mmap.mmap(held, 4096); os.close(held)",
    "pidfd": "held = os.pidfd_open(os.getppid())",
    "pidfd thread": "held = os.pidfd_open(os.getpid(), os.O_EXCL)",
    "socket mptcp": "held = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)",
    "socket vsock": "held = socket.socket(40, socket.SOCK_STREAM)",
    "device": "held = os.open('/dev/fuse', os.O_RDWR)",
    "packet_pipe": "held = os.pipe2(os.O_DIRECT)",
    "unreachable_file unmounted": "made = call(430, b'tmpfs', 0); call(431, made, 6, None, None, 0); held = call(432, made, 0, 0); os.close(made)",
    "unreachable_file covered": """
for name in (b"one", b"two"):
    os.makedirs(here + "/over", exist_ok=True)
    libc.mount(name, (here + "/over").encode(), b"tmpfs", 0, None)
    held = held if name == b"two" else os.open(here + "/over/file", os.O_CREAT | os.O_RDWR)
""",
    "unreachable_file hidden": """
os.makedirs(here + "/over/inner")
held = os.open(here + "/over/inner/file", os.O_CREAT | os.O_RDWR)
libc.mount(b"one", (here + "/over").encode(), b"tmpfs", 0, None)
""",
    "unlinkable_file": """
os.mkdir(here + "/over")
libc.mount(b"one", (here + "/over").encode(), b"tmpfs", 0, None)
held = os.open(here + "/over/file", os.O_CREAT | os.O_RDONLY)
os.link(here + "/over/file", here + "/over/other")
os.unlink(here + "/over/file")
libc.mount(None, (here + "/over").encode(), None, 0x21, None)
""",
    "large_deleted_file": """
held = os.open(here + "/large", os.O_CREAT | os.O_RDWR)
os.posix_fallocate(held, 0, 2 << 20)
os.unlink(here + "/large")
""",
    "system_v_memory": "at = libc.shmget(0, 4096, 0o1600); libc.shmat(at, None, 0); libc.shmctl(at, 0, None)",
    "tracer": "call(101, 16, child(), 0, 0)",
    "tcp_connection": """
held = socket.create_server(("127.0.0.1", 0))
other = socket.create_connection(held.getsockname())
""",
    "unix_peer": """
held = socket.socket(socket.AF_UNIX)
held.bind(here + "/ours")
held.listen()
ended = os.fork()
if ended == 0:
    os.setsid()
    if os.fork() == 0:
        held.close()
        client = socket.socket(socket.AF_UNIX)
        client.connect(here + "/ours")
        client.recv(1)
    os._exit(0)
os.waitpid(ended, 0)
accepted = held.accept()
""",
    "dead_leader": """
pid = os.fork()
if pid == 0:
    leave_a_thread()
while open(f"/proc/{pid}/stat").read().rsplit(")")[1].split()[0] != "Z":
    time.sleep(0.01)
""",
}
# All in one program, since CRIU brings back each of them.
LET_THROUGH = """
child(lambda: os.chroot("/usr"))
dead, ended = child(), child()
held = [os.pidfd_open(pid) for pid in (os.getpid(), child(), dead)]
for pid in (dead, ended):
    os.kill(pid, signal.SIGKILL)
os.waitpid(dead, 0)
os.kill(child(), signal.SIGSTOP)
timer, watch = call(283, 1, 0), select.epoll()
watch.register(timer)
held += [os.eventfd(3), call(289, -1, (ctypes.c_uint64 * 1)(512), 8, 0), call(300, 0, 0), libc.inotify_init()]
held += [os.memfd_create("memory"), os.pipe(), os.openpty(), os.open("/dev/urandom", os.O_RDONLY)]
held += [socket.socketpair(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
held.append(socket.create_server(("::1", 0), family=socket.AF_INET6))
held += [socket.socket(*kind) for kind in ((2, 1, 0), (2, 2, 0), (2, 2, 136), (2, 3, 1), (16, 3, 0), (17, 3, 0x300))]
under_way = socket.socketpair()
socket.send_fds(under_way[0], [b"x"], [1])
for folder in (here, *sys.argv[2:]):
    path = f"{folder}/preflight-{os.getpid()}"
    for way in ("open", "mapped", "moved", "linked"):
        held.append(os.open(path, os.O_CREAT | os.O_RDWR))
        os.write(held[-1], bytes(8192))
        if way == "mapped":
            held.append(mmap.mmap(held[-1], 8192))
        if way == "linked":
            os.link(path, path + "-linked")
        if way == "moved":
            os.rename(path, path + "-moved")
            os.link(path + "-moved", path)
            os.unlink(path + "-moved")
        os.unlink(path)
    held.append(os.open(folder, os.O_TMPFILE | os.O_RDWR))
    os.mkdir(path)
    held.append(os.open(path, os.O_RDONLY))
    os.rmdir(path)
pseudo = ("/proc/self/ns/net", "/proc/self/maps", f"/proc/{os.getppid()}/maps", "/proc/net/tcp", "/sys/kernel/mm")
held += [os.open(path, os.O_RDONLY) for path in pseudo]
held.append(os.open(here + "/f (deleted)", os.O_CREAT | os.O_RDWR))
fcntl.flock(held[-1], fcntl.LOCK_EX)
"""


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of deleted files, for CRIU as for the preflight."""
    monkeypatch.setattr(preflight, "GHOST_LIMIT_BYTES", 1 << 20)


def comes_back(program: Program, images: Path) -> bool:
    """Whether a checkpoint and restore leave it running; a dump that fails leaves it alone."""
    if program.dump(images):
        return program.restore(images)
    assert program.serves()
    return False


def kinds(program: Program) -> set[str]:
    """Names of what the preflight finds."""
    return {finding.kind.name for finding in preflight.examine(procfs.tree(program.pid), preflight.Dump())}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_cannot_be_restored(begin: Begin, store: Path, what: str) -> None:
    program = begin(REFUSED[what])
    assert kinds(program) == {what.split()[0]}
    assert not comes_back(program, store / "images")


def test_a_connection_to_a_daemon_is_refused(begin: Begin, store: Path) -> None:
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(store / "daemon"))
        daemon.listen()
        program = begin("held = socket.socket(socket.AF_UNIX); held.connect(here + '/daemon')")
        peer, _ = daemon.accept()
        with peer:
            assert kinds(program) == {"unix_peer"}
            assert not comes_back(program, store / "images")


def test_what_is_let_through_is_restored(begin: Begin, store: Path) -> None:
    program = begin(LET_THROUGH)
    assert kinds(program) == set()
    assert comes_back(program, store / "images"), program.said


def freezer(name: str) -> tuple[Path, str, str]:
    """A new cgroup that can be frozen: its folder, the file that freezes it, and what to write there."""
    for root, file, word in (("freezer", "freezer.state", "FROZEN"), (".", "cgroup.freeze", "1")):
        folder = Path("/sys/fs/cgroup") / root / name
        if (folder.parent / "cgroup.procs").exists() and os.access(folder.parent, os.W_OK):
            folder.mkdir()
            return folder, file, word
    pytest.skip("no cgroup can be made here")


def test_a_frozen_process_is_refused(begin: Begin, store: Path) -> None:
    program = begin("child()")
    child = procfs.tree(program.pid)[1].pid
    folder, file, frozen = freezer(f"gpuckpt-preflight-{os.getpid()}")
    try:
        (folder / "cgroup.procs").write_text(str(child))
        (folder / file).write_text(frozen)
        assert kinds(program) == {"frozen"}
        assert not program.dump(store / "images")
        assert program.serves()
    finally:
        (folder / file).write_text("THAWED" if frozen == "FROZEN" else "0")
        program.end()
        folder.rmdir()


def test_limits_of_another_user_are_a_matter_of_the_nodes_rights(begin: Begin, store: Path) -> None:
    program = begin("child(lambda: (os.setgid(65534), os.setuid(65534)))")
    assert kinds(program) in (set(), {"foreign_limits"})
    assert comes_back(program, store / "images") == (kinds(program) == set())


HOLD_A_PACKET_PIPE = """
import os, sys
for end in os.pipe2(os.O_DIRECT):
    os.set_inheritable(end, True)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_refused_server_serves_on(call: Call, server: Result, store: Path) -> None:
    options = server["server"]
    options["command"] = ["/usr/bin/python3", "-c", HOLD_A_PACKET_PIPE, *options["command"]]
    assert call("ckpt_start", **server)["record"]["status"] == "ok"
    result = call("ckpt_checkpoint", **server, criu=STOCK, checkpoint={"dir": str(store / "golden")})
    assert result["reason"] == "not_restorable"
    assert "packet mode" in result["msg"]
    assert result["msg"].endswith("The server goes on serving.")
    assert ["pipe:[" in line for line in result["log_lines"]] == [True], "its writing end is named"
    assert call("ckpt_probe", **server, requests=1)["record"]["status"] == "ok"


def test_all_that_is_wrong_with_a_container_is_told_at_once(
    call: Call, podman_server: Result, store: Path, tmp_path: Path
) -> None:
    if "GPUCKPT_OWN_NODE" not in os.environ:
        pytest.skip(
            "what fails here would hang podman on this machine: only on a node with an IPC namespace of its own"
        )
    mounted, newer = tmp_path / "mounted", tmp_path / "newer"
    mounted.touch()
    newer.touch()
    podman_server["server"]["podman_args"] += ["--ipc=host", "-v", f"{mounted}:/mounted:ro"]
    assert call("ckpt_start", **podman_server)["record"]["status"] == "ok"
    newer.replace(mounted)
    result = call("ckpt_checkpoint", **podman_server, criu=STOCK, checkpoint={"dir": str(store / "golden")})
    assert result["reason"] == "not_restorable"
    assert "--ipc=private" in result["msg"]
    assert "what is mounted at /mounted" in result["msg"]
    assert call("ckpt_probe", **podman_server, requests=1)["record"]["status"] == "ok"
