# SPDX-License-Identifier: GPL-3.0-or-later
"""What cannot be checkpointed and restored, found in /proc while the server still serves.

Each kind is one row of KINDS. A row stands for a refusal of CRIU 4.2.1 or of podman, and looks at what they look at.
The tests try every row against them. What cannot be seen from outside is named in docs/decisions.md.
"""

from __future__ import annotations

import os
import resource
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from ..errors import CkptError
from ..system import procfs
from ..system.files import read_text
from ..system.mounts import Mount
from ..system.mounts import of_process as mounts_of
from .footprint import is_page_image

# The largest deleted file that CRIU takes into the images; the role criu gives containers the same.
GHOST_LIMIT_BYTES = 1 << 30
DELETED = " (deleted)"
# Those that CRIU wants to be the same for all processes. Network and mount namespaces have rules of their own.
SHARED_NAMESPACES = ("pid", "ipc", "uts", "user", "cgroup", "time")
ANONYMOUS_INODE = "anon_inode:"
DUMPABLE_INODES = ("[eventfd]", "[eventpoll]", "inotify", "[fanotify]", "[signalfd]", "[timerfd]", "[pidfd]")
# What CRIU keeps as memory, however large it is
KEPT_OTHERWISE = ("/memfd:", "/SYSV", "/dev/zero")
PIDFD = "anon_inode:[pidfd]"
# The names that the kernel gives protocols (system.sockprotoname); CRIU knows the families of these alone.
DUMPABLE_SOCKETS = (
    *("TCP", "TCPv6", "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "RAW", "RAWv6", "PING", "PINGv6"),
    *("UNIX", "UNIX-STREAM", "NETLINK", "PACKET"),
)
# Memory devices, and terminals. What the NVIDIA driver opened it closes before CRIU looks.
DUMPABLE_MAJORS = (1, 4, 5, 136)
AUTOFS = (10, 235)
DRIVER_DEVICES = ("/dev/nvidia", "/dev/dri/", "/dev/kfd")
# File systems whose paths CRIU treats on their own
PATHS_OF_THEIR_OWN = ("proc", "devpts")
PIDFD_THREAD = os.O_EXCL
CONNECTION_PATIENCE_S = 1.0
FREEZERS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/freezer")


@dataclass(frozen=True)
class Kind:
    """One thing that stands in the way of a restore.

    :param name: for tests and logs.
    :param sign: how /proc shows it.
    :param cause: ends the sentence that names the process.
    :param fix: what a user does about it.
    :param find: yields the beginning of that sentence for each occurrence.
    :param reason: one of vocabulary.REASONS.
    """

    name: str
    sign: str
    cause: str
    fix: str
    find: Callable[[Server], Iterator[str]]
    reason: str = "not_restorable"


@dataclass(frozen=True)
class Finding:
    """A kind, and where it was found."""

    kind: Kind
    where: str

    def __str__(self) -> str:
        return f"{self.where}, {self.kind.cause}; {self.kind.fix}."


@dataclass(frozen=True)
class Descriptor:
    """An open file. `path` reaches it from outside, `target` is what its link says."""

    task: procfs.Task
    number: int
    path: str
    target: str
    stat: os.stat_result
    flags: int
    mount: int
    info: dict[str, str]

    @property
    def is_file(self) -> bool:
        """Whether CRIU restores it by its path."""
        ordinary = stat.S_ISREG(self.stat.st_mode) or stat.S_ISDIR(self.stat.st_mode)
        return ordinary and self.target.startswith("/") and not self.target.startswith("/memfd:")

    def __str__(self) -> str:
        return f"{_named(self.task)} holds descriptor {self.number} ({self.target})"


class Dump(NamedTuple):
    """How the server is going to be dumped.

    :param in_container: whether an OCI runtime asks CRIU for it, see RuntimeTraits.
    :param tcp_established: whether connections to other programs are dumped, too.
    :param images_as_memory: whether memory mapped from page images is dumped as memory, see footprint.Redump.
    :param gpus: of each process that may share GPU memory with others, the GPUs that it uses.
    """

    in_container: bool = False
    tcp_established: bool = False
    images_as_memory: bool = True
    gpus: Mapping[int, set[str]] = MappingProxyType({})


class Server:
    """The processes of a server as /proc shows them; every part is read once, when it is first asked for."""

    def __init__(self, tasks: list[procfs.Task], how: Dump) -> None:
        self.tasks = tasks
        self.how = how

    @cached_property
    def descriptors(self) -> list[Descriptor]:
        """All open files of all processes; those that close meanwhile are left out."""
        return [found for task in self.tasks for found in _descriptors(task)]

    @cached_property
    def mounts(self) -> dict[int, Mount]:
        """The mounts that the processes see, by number; a process in a chroot is not asked where another can be."""
        witnesses: dict[str, int | str] = {_link("/proc/self/ns/mnt"): "self"} if self.is_ours("mnt") else {}
        for task in self.tasks:
            witnesses.setdefault(self.namespace(task, "mnt"), task.pid)
        return {mount.number: mount for witness in witnesses.values() for mount in mounts_of(witness)}

    @cached_property
    def mappings(self) -> list[tuple[procfs.Task, procfs.Mapping]]:
        """Each mapping that has a name."""
        return [(task, mapping) for task in self.tasks for mapping in procfs.mappings(task.pid) if mapping.name]

    def namespace(self, task: procfs.Task, name: str) -> str:
        """The identity of a namespace of the process; empty for one that ended."""
        return _link(f"/proc/{task.pid}/ns/{name}")

    def is_ours(self, name: str) -> bool:
        """Whether the first process shares this namespace with us, and thus with CRIU."""
        return self.namespace(self.tasks[0], name) == _link(f"/proc/self/ns/{name}")

    def look_up(self, path: str) -> os.stat_result | None:
        """What lies at a path of the server, links not followed; None for nothing."""
        root = "" if self.is_ours("mnt") else f"/proc/{self.tasks[0].pid}/root"
        try:
            return os.lstat(root + path)
        except OSError:
            return None


def examine(tasks: Iterable[procfs.Task], how: Dump) -> list[Finding]:
    """All that would make the checkpoint of these processes, the first one first, or its restore fail."""
    server = Server(list(tasks), how)
    if not server.tasks:
        return []
    return [Finding(kind, where) for kind in KINDS for where in dict.fromkeys(kind.find(server))]


def require_restorable(tasks: Iterable[procfs.Task], how: Dump) -> None:
    """Raises CkptError, with the reason of the first finding and a sentence for each kind, if anything is found."""
    findings = examine(tasks, how)
    if not findings:
        return
    first_of_kind = {finding.kind.name: finding for finding in reversed(findings)}
    told = [finding for finding in findings if first_of_kind[finding.kind.name] is finding]
    raise CkptError(
        findings[0].kind.reason,
        f"the server cannot be restored from a checkpoint: {' '.join(map(str, told))}",
        [finding.where for finding in findings],
    )


def _namespaces(server: Server) -> Iterator[str]:
    first = server.tasks[0]
    for task in server.tasks:
        for name in SHARED_NAMESPACES:
            if _differs(server.namespace(first, name), server.namespace(task, name)):
                yield f"{_named(task)} is in a {name} namespace of its own"
        if _differs(server.namespace(task, "time"), server.namespace(task, "time_for_children")):
            yield f"{_named(task)} has a time namespace for its children"


def _network_namespaces(server: Server) -> Iterator[str]:
    # runc asks CRIU for an empty network namespace, next to which there can be no other
    if server.how.in_container or server.is_ours("net"):
        yield from _nested(server, "net", "network")


def _mount_namespaces(server: Server) -> Iterator[str]:
    if server.is_ours("mnt"):
        yield from _nested(server, "mnt", "mount")


def _nested(server: Server, name: str, called: str) -> Iterator[str]:
    first = server.namespace(server.tasks[0], name)
    for task in server.tasks:
        if _differs(first, server.namespace(task, name)):
            yield f"{_named(task)} is in a {called} namespace of its own"


def _hosts_ipc(server: Server) -> Iterator[str]:
    if server.how.in_container and server.is_ours("ipc"):
        yield "the container runs with --ipc=host"


def _peers_on_gpus(server: Server) -> Iterator[str]:
    used = {gpu for gpus in server.how.gpus.values() for gpu in gpus}
    if len(server.how.gpus) > 1 and len(used) > 1:
        yield f"{len(server.how.gpus)} processes of the server use {len(used)} GPUs"


def _system_v_memory(server: Server) -> Iterator[str]:
    if server.is_ours("ipc"):
        yield from _mapped(server, "/SYSV")


def _anonymous_inodes(server: Server) -> Iterator[str]:
    for held in server.descriptors:
        kind = held.target.removeprefix(ANONYMOUS_INODE)
        if kind not in (held.target, *DUMPABLE_INODES) and "io_uring" not in kind:
            yield str(held)
    for task, mapping in server.mappings:
        if mapping.name.startswith(ANONYMOUS_INODE) and "io_uring" not in mapping.name:
            yield f"{_named(task)} has {mapping.name} mapped"


def _io_uring(server: Server) -> Iterator[str]:
    for held in server.descriptors:
        if "io_uring" in held.target:
            yield f"{_named(held.task)} holds an io_uring descriptor"
    yield from _mapped(server, "anon_inode:[io_uring]")


def _secret_memory(server: Server) -> Iterator[str]:
    for held in server.descriptors:
        if held.target.startswith("/secretmem"):
            yield str(held)
    yield from _mapped(server, "/secretmem")


def _mapped(server: Server, name: str) -> Iterator[str]:
    for task, mapping in server.mappings:
        if mapping.name.startswith(name):
            yield f"{_named(task)} has {mapping.name} mapped"


def _pidfds(server: Server) -> Iterator[str]:
    ours = {task.pid for task in server.tasks}
    for held in server.descriptors:
        if held.target != PIDFD:
            continue
        if held.flags & PIDFD_THREAD:
            yield f"{_named(held.task)} holds descriptor {held.number} on a single thread"
            continue
        # 0 is a process that we cannot see, -1 one that was collected, which CRIU restores
        pid = int(held.info.get("Pid", -1))
        other = procfs.read_task(pid) if pid > 0 else None
        if pid == 0 or (other is not None and not ours & {other.pid, other.ppid}):
            yield f"{_named(held.task)} holds descriptor {held.number} on process {pid}, which is not the server's"


def _sockets(server: Server) -> Iterator[str]:
    for held in server.descriptors:
        if not stat.S_ISSOCK(held.stat.st_mode):
            continue
        if not held.target.startswith("socket:["):
            yield str(held)
            continue
        with suppress(OSError):
            protocol = os.getxattr(held.path, "system.sockprotoname").rstrip(b"\0").decode()
            if protocol not in DUMPABLE_SOCKETS:
                yield f"{_named(held.task)} holds descriptor {held.number}, a socket of the kind {protocol}"


def _devices(server: Server) -> Iterator[str]:
    for held in server.descriptors:
        number = (os.major(held.stat.st_rdev), os.minor(held.stat.st_rdev))
        if held.target.startswith(DRIVER_DEVICES):
            continue
        character = stat.S_ISCHR(held.stat.st_mode) and number[0] not in DUMPABLE_MAJORS and number != AUTOFS
        if character or stat.S_ISBLK(held.stat.st_mode):
            yield str(held)


def _packet_pipes(server: Server) -> Iterator[str]:
    for held in server.descriptors:
        if held.target.startswith("pipe:[") and held.flags & os.O_DIRECT:
            yield str(held)


def _unreachable_files(server: Server) -> Iterator[str]:
    for held in server.descriptors:
        if not held.is_file or held.target.startswith("/secretmem"):
            continue
        mount = server.mounts.get(held.mount)
        if mount is None or _is_covered(mount, server.mounts):
            yield str(held)
        elif mount.fstype not in PATHS_OF_THEIR_OWN and not held.target.endswith(DELETED):
            there = server.look_up(held.target)
            same = there is not None and (there.st_dev, there.st_ino) == (held.stat.st_dev, held.stat.st_ino)
            if not same and _link(held.path) == held.target:
                yield str(held)


def _is_covered(mount: Mount, mounts: dict[int, Mount]) -> bool:
    """Whether another mount lies over this one or over one that it is in."""
    inner = mount
    while (parent := mounts.get(inner.parent)) is not None and parent is not inner:
        for other in mounts.values():
            if other.parent == parent.number and other is not inner and _is_below(inner.point, other.point):
                return True
        inner = parent
    return any(other.parent == mount.number and other.point == mount.point for other in mounts.values())


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _hidden_images(server: Server) -> Iterator[str]:
    if server.how.images_as_memory:
        return
    for task, mapping in server.mappings:
        named = mapping.is_private and is_page_image(mapping.name) and not mapping.name.endswith(DELETED)
        if named and server.look_up(mapping.name) is None:
            yield f"{_named(task)} has memory from {os.path.basename(mapping.name)}"


def _unlinkable_files(server: Server) -> Iterator[str]:
    for held in server.descriptors:
        if held.is_file and held.target.endswith(DELETED) and held.stat.st_nlink and held.mount in server.mounts:
            with suppress(OSError):
                if os.statvfs(held.path).f_flag & os.ST_RDONLY:
                    yield str(held)


def _large_deleted_files(server: Server) -> Iterator[str]:
    for held in server.descriptors:
        if held.is_file and _is_too_large(held.stat):
            yield str(held)
    for task, mapping in server.mappings:
        # patched CRIU takes page images for the anonymous memory that they were
        if (
            mapping.name.startswith("/")
            and mapping.name.endswith(DELETED)
            and not mapping.name.startswith(KEPT_OTHERWISE)
            and not is_page_image(mapping.name)
        ):
            with suppress(OSError):
                if _is_too_large(os.stat(mapping.file)):
                    yield f"{_named(task)} has {mapping.name} mapped"


def _is_too_large(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and not found.st_nlink and found.st_blocks * 512 > GHOST_LIMIT_BYTES


def _replaced_mounts(server: Server) -> Iterator[str]:
    if not server.is_ours("mnt"):
        for mount in server.mounts.values():
            if mount.root.endswith("//deleted"):
                yield f"what is mounted at {mount.point} ({mount.root.removesuffix('//deleted')}) was removed"


def _foreign_connections(server: Server) -> Iterator[str]:
    if not server.how.tcp_established:
        pids = [task.pid for task in server.tasks]
        for connection in _after_a_while(lambda: procfs.one_ended(procfs.open_tcp_connections(pids))):
            yield f"the connection {connection} is open"


def _foreign_peers(server: Server) -> Iterator[str]:
    # the kernel tells of our own network namespace only
    if server.is_ours("net"):
        yield from _after_a_while(lambda: _unix_sockets_of_others(server))


def _unix_sockets_of_others(server: Server) -> list[str]:
    held = {open_file.target: open_file for task in server.tasks for open_file in _descriptors(task)}
    found = []
    for kind, inode, peer in procfs.unix_connections():
        # without --ext-unix-sk, which runc does not pass, datagrams to others are refused, too
        of_a_kind = kind != socket.SOCK_DGRAM or server.how.in_container
        holder = held.get(f"socket:[{inode}]")
        if of_a_kind and peer and holder is not None and f"socket:[{peer}]" not in held:
            found.append(f"{holder} is connected to another program")
    return sorted(found)


def _after_a_while(find: Callable[[], list[str]]) -> list[str]:
    """What is still found when connections that were just closed have gone."""
    deadline = time.monotonic() + CONNECTION_PATIENCE_S
    while (found := find()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _traced(server: Server) -> Iterator[str]:
    for task in server.tasks:
        for thread in procfs.names(f"/proc/{task.pid}/task"):
            tracer = int(_status(f"/proc/{task.pid}/task/{thread}/status").get("TracerPid", 0))
            if tracer:
                yield f"{_named(task)} is traced by process {tracer}"


def _frozen(server: Server) -> Iterator[str]:
    for task in server.tasks:
        for line in read_text(f"/proc/{task.pid}/cgroup").splitlines():
            controllers, group = line.split(":", 2)[1:]
            if controllers in ("", "freezer") and any(_is_frozen(root + group) for root in FREEZERS):
                yield f"{_named(task)} is frozen by its cgroup {group}"


def _is_frozen(folder: str) -> bool:
    state = read_text(f"{folder}/freezer.state").strip()
    return state in ("FROZEN", "FREEZING") or "frozen 1" in read_text(f"{folder}/cgroup.events").splitlines()


def _dead_leaders(server: Server) -> Iterator[str]:
    ours = {task.pid for task in server.tasks}
    for name in procfs.names("/proc"):
        task = procfs.read_task(int(name)) if name.isdigit() else None
        if task is not None and task.state == "Z" and task.ppid in ours and len(procfs.names(f"/proc/{name}/task")) > 1:
            yield f"the first thread of {_named(task)} has ended, others of its threads run"


def _foreign_limits(server: Server) -> Iterator[str]:
    for task in server.tasks:
        try:
            resource.prlimit(task.pid, resource.RLIMIT_CPU)
        except PermissionError:
            yield f"{_named(task)} belongs to another user, whose limits this node does not let root read"
        except ProcessLookupError:
            continue


UNDO_NAMESPACE = "start the server without that sandbox of its own"
CLOSE = "close it before the checkpoint, or start the server without what opens it"

KINDS: tuple[Kind, ...] = (
    Kind(
        "io_uring",
        "a descriptor or a mapping called anon_inode:[io_uring]",
        "which CRIU cannot dump",
        "deny io_uring to the server (role seccomp_profile, or sysctl kernel.io_uring_disabled=2) and start it again",
        _io_uring,
        "io_uring",
    ),
    Kind(
        "tcp_connection",
        "an open connection in /proc/PID/net/tcp or tcp6 whose other end is not the server's",
        "and its other end would not be in the checkpoint",
        "close the client that keeps it open, or set tcp_established for the checkpoint",
        _foreign_connections,
        "tcp_connection",
    ),
    Kind(
        "unix_peer",
        "the peer that sock_diag tells of a UNIX socket is not the server's",
        "and that end would not be in the checkpoint",
        "end that program, or let the server close the connection before the checkpoint",
        _foreign_peers,
    ),
    Kind(
        "nested_namespace",
        "/proc/PID/ns/NAME is not that of the first process; time_for_children is not time",
        "which CRIU cannot dump",
        UNDO_NAMESPACE,
        _namespaces,
    ),
    Kind(
        "nested_network",
        "/proc/PID/ns/net is not that of the first process, which has ours or is a container",
        "which CRIU dumps and then cannot restore",
        UNDO_NAMESPACE,
        _network_namespaces,
    ),
    Kind(
        "nested_mounts",
        "/proc/PID/ns/mnt is not that of the first process, which has ours",
        "which CRIU cannot restore together with processes that share the node's",
        UNDO_NAMESPACE,
        _mount_namespaces,
    ),
    Kind(
        "ipc_host",
        "/proc/PID/ns/ipc of a container is ours",
        "so podman would put back the node's /dev/shm with its own locks held by nobody, and hang for good",
        "start it with --ipc=private and, for a larger /dev/shm, --shm-size",
        _hosts_ipc,
    ),
    Kind(
        "gpu_peers",
        "nvidia-smi tells of several processes of the server on several GPUs",
        "and memory that they share there (NCCL) the driver checkpoints, but does not restore",
        "choose a slimming that lets go of it (server.unshared_by names those; for vLLM kv-drop or staged), let it use one GPU, "
        "or, if it shares none, set server.shares_gpu_memory: false",
        _peers_on_gpus,
    ),
    Kind(
        "system_v_memory",
        "a mapping called /SYSV..., and /proc/PID/ns/ipc is ours",
        "which CRIU dumps in an IPC namespace of the server's own only",
        "run the server in a container, or under `unshare --ipc`",
        _system_v_memory,
    ),
    Kind(
        "anonymous_inode",
        "a descriptor or mapping called anon_inode:X, where X is not among those that CRIU knows",
        "which CRIU cannot dump",
        CLOSE,
        _anonymous_inodes,
    ),
    Kind(
        "secret_memory",
        "a descriptor or mapping called /secretmem",
        "which nobody but the process can read",
        "tell the library that uses memfd_secret to do without",
        _secret_memory,
    ),
    Kind(
        "pidfd",
        "Pid in the fdinfo of anon_inode:[pidfd] is no process of the server; its flags have PIDFD_THREAD",
        "which CRIU cannot dump",
        CLOSE,
        _pidfds,
    ),
    Kind(
        "socket",
        "the attribute system.sockprotoname of /proc/PID/fd/N is not among those that CRIU knows",
        "which CRIU cannot dump",
        "let the server use TCP, UDP or a UNIX socket (a Go program: GODEBUG=multipathtcp=0)",
        _sockets,
    ),
    Kind(
        "device",
        "a descriptor of a block device, or of a character device that is no memory device, terminal or GPU",
        "a device that CRIU cannot dump",
        CLOSE,
        _devices,
    ),
    Kind(
        "packet_pipe",
        "O_DIRECT in the fdinfo of a pipe",
        "a pipe in packet mode, which CRIU cannot dump",
        CLOSE,
        _packet_pipes,
    ),
    Kind(
        "unreachable_file",
        "mnt_id in its fdinfo is in no mountinfo, or covered, or its path leads to another file",
        "a file that no path leads to any more",
        "undo the mount that hides it, or let the server open it again",
        _unreachable_files,
    ),
    Kind(
        "hidden_images",
        "a mapping of a page image that no path leads to, and a CRIU as released",
        "mapped by a restore with the patched CRIU, and CRIU as released cannot dump it",
        "let the lane use the build `patched`",
        _hidden_images,
    ),
    Kind(
        "unlinkable_file",
        "a deleted file with further names (st_nlink) on a mount that is read-only",
        "whose name is gone, and CRIU cannot give it another where nothing can be written",
        "put the file back under its name, or let the server open it again",
        _unlinkable_files,
    ),
    Kind(
        "large_deleted_file",
        "a file without a name (st_nlink 0) that takes more than GHOST_LIMIT_BYTES",
        f"a deleted file of more than {GHOST_LIMIT_BYTES >> 30} GiB, which CRIU does not take into the images",
        "keep the file under its name, or make it smaller",
        _large_deleted_files,
    ),
    Kind(
        "replaced_mount",
        "//deleted in a container's mountinfo",
        "so podman cannot mount it again",
        "start the server again, and do not replace what a container has mounted",
        _replaced_mounts,
    ),
    Kind(
        "tracer",
        "TracerPid in the status of a thread",
        "so CRIU cannot attach to it",
        "end the debugger or tracer",
        _traced,
    ),
    Kind(
        "frozen",
        "freezer.state or cgroup.events of its cgroup",
        "so CRIU would wait for it in vain",
        "thaw it (`podman unpause` for a container)",
        _frozen,
    ),
    Kind(
        "dead_leader",
        "state Z in /proc/PID/stat, and more than one thread",
        "which CRIU cannot attach to",
        "let the program end by exit(), or keep its first thread",
        _dead_leaders,
    ),
    Kind(
        "foreign_limits",
        "prlimit() of the process is refused",
        "so CRIU cannot save them",
        "give this node's root CAP_SYS_RESOURCE, or run the server as root",
        _foreign_limits,
    ),
)


def _named(task: procfs.Task) -> str:
    return f"process {task.pid} ({task.comm})"


def _differs(first: str, second: str) -> bool:
    """Whether both are known (a process may have ended) and not the same."""
    return bool(first) and bool(second) and first != second


def _descriptors(task: procfs.Task) -> Iterator[Descriptor]:
    for number in procfs.names(f"/proc/{task.pid}/fd"):
        path = f"/proc/{task.pid}/fd/{number}"
        info = _status(f"/proc/{task.pid}/fdinfo/{number}")
        with suppress(OSError, KeyError):
            flags, mount = int(info["flags"], 8), int(info["mnt_id"])
            yield Descriptor(task, int(number), path, os.readlink(path), os.stat(path), flags, mount, info)


def _status(path: str) -> dict[str, str]:
    """The lines `key: value` of a file of /proc."""
    pairs = (line.split(":", 1) for line in read_text(path).splitlines() if ":" in line)
    return {key: value.strip() for key, value in pairs}


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
