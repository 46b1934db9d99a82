# SPDX-License-Identifier: GPL-3.0-or-later
"""What the preflight refuses CRIU really cannot bring back, and what it lets through CRIU does bring back."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible.module_utils.ckpt import preflight, procfs
from support import STOCK, Call, Result

pytestmark = pytest.mark.integration
CRIU = "/opt/gpuckpt/criu/stock/libexec/criu"
PATIENCE_S = 30.0

# In front of each program: system calls by number (x86-64), and a child that does something and stays.
PRELUDE = """
import ctypes, fcntl, mmap, os, select, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
here = os.path.dirname(sys.argv[1])
def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def unshare(flags):
    call(272, flags)
def child(work=lambda: None):
    done, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(done)
        work()
        os.write(tell, b"ok")
        os.close(tell)
        while True:
            time.sleep(1)
    os.close(tell)
    said = os.read(done, 2)
    os.close(done)
    assert said == b"ok"
    return pid
def leave_a_thread():
    threading.Thread(target=lambda: time.sleep(1000)).start()
    call(60, 0)
"""
# Behind it: what shows that it lives.
SERVE = """
while True:
    with open(sys.argv[1], "w") as beat:
        beat.write(str(time.monotonic()))
    time.sleep(0.02)
"""
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


Begin = Callable[[str], "Program"]


@dataclass
class Program:
    """A running program, and what a checkpoint of it needs."""

    process: subprocess.Popen[bytes]
    folder: Path
    said: str = ""

    @property
    def pid(self) -> int:
        """Its number, the same after a restore."""
        return self.process.pid

    def serves(self) -> bool:
        """Whether it beats again within a while."""
        beat = self.folder / "beat"
        beat.unlink(missing_ok=True)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and os.path.exists(f"/proc/{self.pid}"):
            if beat.exists():
                return True
            time.sleep(0.01)
        return False

    def criu(self, action: str, *options: str) -> bool:
        """Whether CRIU could dump or restore it, with the options of the runtime `process`."""
        (self.folder / "images").mkdir(exist_ok=True)
        common = [
            "--images-dir",
            self.folder / "images",
            "--ext-unix-sk",
            "--file-locks",
            "--link-remap",
            "--timeout",
            "5",
        ]
        common += [
            "--ghost-limit",
            str(preflight.GHOST_LIMIT_BYTES),
            "--manage-cgroups=ignore",
            "--network-lock",
            "skip",
        ]
        done = subprocess.run(
            [CRIU, action, *common, *options], capture_output=True, text=True, timeout=120, check=False
        )
        self.said = done.stderr
        return done.returncode == 0

    def comes_back(self) -> bool:
        """Whether a checkpoint and restore leave it running."""
        if not self.criu("dump", "--tree", str(self.pid)):
            assert self.serves(), "a dump that fails leaves it alone"
            return False
        self.reap()
        return self.criu("restore", "--restore-detached") and self.serves()

    def end(self) -> None:
        """End its processes, whether they are ours or restored."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.reap()

    def reap(self) -> None:
        """Collect its processes when they end: its number is free then, as a group's too."""
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-self.pid, 0)


@pytest.fixture
def begin(provisioned: object, store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Start a program; returns it when it serves. Skips where the kernel lacks what it asks for."""
    monkeypatch.setattr(preflight, "GHOST_LIMIT_BYTES", 1 << 20)
    procfs.adopt_orphans()
    programs = []
    scratch = [tempfile.TemporaryDirectory(dir=folder) for folder in ("/dev/shm", "/var/tmp")]

    def start(code: str) -> Program:
        beat = store / "beat"
        with (store / "log").open("wb") as log:
            argv = ["/usr/bin/python3", "-c", PRELUDE + code + SERVE, str(beat), *(folder.name for folder in scratch)]
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        programs.append(Program(process, store))
        deadline = time.monotonic() + PATIENCE_S
        while not beat.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is not None:
            pytest.skip(f"this kernel has it not: {(store / 'log').read_text().splitlines()[-1]}")
        return programs[-1]

    yield start
    for program in programs:
        program.end()
    for folder in scratch:
        folder.cleanup()
    while os.path.ismount(store / "over"):
        subprocess.run(["umount", "--lazy", store / "over"], check=True)


def kinds(program: Program) -> set[str]:
    """Names of what the preflight finds."""
    return {finding.kind.name for finding in preflight.examine(procfs.tree(program.pid), "process")}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_cannot_be_restored(begin: Begin, what: str) -> None:
    program = begin(REFUSED[what])
    assert kinds(program) == {what.split()[0]}
    assert not program.comes_back()


def test_what_is_let_through_is_restored(begin: Begin) -> None:
    program = begin(LET_THROUGH)
    assert kinds(program) == set()
    assert program.comes_back(), program.said


def test_limits_of_another_user_are_a_matter_of_the_nodes_rights(begin: Begin) -> None:
    program = begin("child(lambda: (os.setgid(65534), os.setuid(65534)))")
    assert kinds(program) in (set(), {"foreign_limits"})
    assert program.comes_back() == (kinds(program) == set())


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


def test_a_container_with_the_nodes_ipc_is_refused(call: Call, podman_server: Result, store: Path) -> None:
    if "GPUCKPT_OWN_NODE" not in os.environ:
        pytest.skip(
            "what fails here would hang podman on this machine: only on a node with an IPC namespace of its own"
        )
    podman_server["server"]["podman_args"].append("--ipc=host")
    assert call("ckpt_start", **podman_server)["record"]["status"] == "ok"
    result = call("ckpt_checkpoint", **podman_server, criu=STOCK, checkpoint={"dir": str(store / "golden")})
    assert result["reason"] == "not_restorable"
    assert "--ipc=private" in result["msg"]
    assert call("ckpt_probe", **podman_server, requests=1)["record"]["status"] == "ok"
