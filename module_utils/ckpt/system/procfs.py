# SPDX-License-Identifier: GPL-3.0-or-later
"""What /proc says about processes: trees, identities, and what stands in the way of a checkpoint."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import NamedTuple

from .files import read_text

TCP_ESTABLISHED = "01"
TCP_CLOSE_WAIT = "08"
# ::ffff:a.b.c.d in /proc/net/tcp6
MAPPED_IPV4 = "0000000000000000FFFF0000"
TCP_LISTEN = "0A"
OPEN_TCP_STATES = {TCP_ESTABLISHED, TCP_CLOSE_WAIT, "02", "03", "04", "05", "09", "0B"}
# /proc/N/stat: number, (name), state, parent, 17 more fields, start in clock ticks since the boot
STAT = re.compile(
    r"[0-9]+ \((?P<comm>.*)\) (?P<state>\S) (?P<ppid>[0-9]{1,9})(?: -?[0-9]{1,20}){17} (?P<start>[0-9]{1,20})(?: .*)?\n?",
    re.DOTALL,
)
# /proc/net/tcp: number, local and remote address, state, 5 more fields, inode
TCP_ROW = re.compile(
    r"^ *[0-9]+: (?P<local>(?:[0-9A-F]{8}){1,4}:[0-9A-F]{4}) (?P<remote>(?:[0-9A-F]{8}){1,4}:[0-9A-F]{4}) "
    r"(?P<state>[0-9A-F]{2})(?: +\S+){5} +(?P<inode>[0-9]+)\b",
    re.MULTILINE,
)
# /proc/N/smaps: what it says of a mapping in kibibytes
MAPPING_SIZE = re.compile(r"(\w+): +([0-9]{1,19}) kB")
REAP_TIMEOUT_S = 10.0
REAP_POLL_S = 0.005
PR_SET_CHILD_SUBREAPER = 36
# linux/netlink.h, sock_diag.h and unix_diag.h
NETLINK_SOCK_DIAG = 4
SOCK_DIAG = 20
DUMP_REQUEST = 0x301
UNIX_DIAG_PEER = 2
# /proc/N/maps and smaps: range, access, offset, device, inode, and what is mapped
MAPPING = re.compile(r"([0-9a-f]{1,16}-[0-9a-f]{1,16}) (\S{4}) [0-9a-f]+ \S+ [0-9]+(?: +(.*))?")


@dataclass(frozen=True)
class Task:
    """One process. `nspid` is its number in its innermost PID namespace, which survives a restore."""

    pid: int
    nspid: int
    ppid: int
    comm: str
    state: str
    starttime: int

    @property
    def identity(self) -> tuple[int, str]:
        """What is the same before a checkpoint and after the restore."""
        return (self.nspid, self.comm)

    def as_dict(self) -> dict[str, int | str]:
        """For the manifest of a checkpoint."""
        return asdict(self)


@dataclass(frozen=True)
class Mapping:
    """A range of a process's memory. `kib` holds what smaps says of it, by smaps' names."""

    pid: int
    range: str
    access: str
    name: str
    kib: dict[str, int]

    @property
    def is_private(self) -> bool:
        """Whether what the process writes there stays its own."""
        return self.access.endswith("p")

    @property
    def bounds(self) -> tuple[int, int]:
        """First address, and the one behind the last."""
        start, end = self.range.split("-")
        return int(start, 16), int(end, 16)

    @property
    def file(self) -> str:
        """A path that reaches what is mapped, whatever became of its name; for root alone."""
        start, end = self.bounds
        return f"/proc/{self.pid}/map_files/{start:x}-{end:x}"


class UnixConnection(NamedTuple):
    """A socket, of the type `kind` (socket.SOCK_STREAM, ...), and the inode that it is connected to."""

    kind: int
    inode: int
    peer: int


def read_task(pid: int, proc: str = "/proc") -> Task | None:
    """The process `pid`, None if it does not exist or cannot be read."""
    stat = _read_stat(pid, proc)
    return None if stat is None else _task(pid, stat, proc)


def _read_stat(pid: int, proc: str) -> re.Match[str] | None:
    # the name may hold anything, brackets and line ends too
    return STAT.fullmatch(read_text(f"{proc}/{pid}/stat"))


def _task(pid: int, stat: re.Match[str], proc: str) -> Task:
    nspid = _status(pid, "NSpid", proc)
    return Task(
        pid, pid if nspid is None else nspid, int(stat["ppid"]), stat["comm"], stat["state"], int(stat["start"])
    )


def process_of(number: int, proc: str = "/proc") -> int | None:
    """The process that the thread of this number belongs to; None if there is none."""
    return _status(number, "Tgid", proc)


def tracer_of_the_dead(pid: int, proc: str = "/proc") -> int | None:
    """Who traces the process although it has ended, and so has yet to collect it; None if it runs or nobody does."""
    task = read_task(pid, proc)
    return (_status(pid, "TracerPid", proc) or None) if task is not None and task.state == "Z" else None


def _status(pid: int, key: str, proc: str) -> int | None:
    """The last number of a line of a process's status."""
    match = re.search(
        rf"^{key}:(?:\s+[0-9]{{1,9}})*\s+([0-9]{{1,9}})$", read_text(f"{proc}/{pid}/status"), re.MULTILINE
    )
    return int(match[1]) if match else None


def tree(root: int, proc: str = "/proc") -> list[Task]:
    """The process `root` and all its descendants, parents first; zombies are left out."""
    stats = {int(entry): _read_stat(int(entry), proc) for entry in os.listdir(proc) if entry.isdigit()}
    living = {pid: stat for pid, stat in stats.items() if stat is not None and stat["state"] not in ("Z", "X")}
    children: dict[int, list[int]] = {}
    for pid, stat in living.items():
        children.setdefault(int(stat["ppid"]), []).append(pid)
    found = [root] if root in living else []
    for pid in found:
        found.extend(children.get(pid, []))
    return [_task(pid, living[pid], proc) for pid in found]


def adopt_orphans() -> None:
    """Becomes the parent of descendants whose own parent ends, so that `wait_gone` can reap them.

    A restored tree is CRIU's orphan; the PID 1 of a small machine may take more than a second to notice that it ended.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(pid: int) -> None:
    """Collects a process that ended, if it is a child of this one."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def wait_gone(pids: Iterable[int], timeout_s: float = REAP_TIMEOUT_S) -> list[int]:
    """Waits until no process, not even a zombie, has one of these numbers. Returns those that are still there."""
    remaining = list(pids)
    deadline = time.monotonic() + timeout_s
    while remaining:
        for pid in remaining:
            reap(pid)
        remaining = [pid for pid in remaining if os.path.exists(f"/proc/{pid}")]
        if not remaining or time.monotonic() >= deadline:
            break
        time.sleep(REAP_POLL_S)
    return remaining


def mappings(pid: int, sizes: bool = False, proc: str = "/proc") -> Iterator[Mapping]:
    """The mappings of a process, in order; none if it ended.

    :param sizes: read smaps, which looks at every page, instead of maps.
    """
    found: Mapping | None = None
    for line in read_text(f"{proc}/{pid}/{'smaps' if sizes else 'maps'}").split("\n"):
        if match := MAPPING.fullmatch(line):
            if found is not None:
                yield found
            found = Mapping(pid, match[1], match[2], match[3] or "", {})
        elif found is not None and (size := MAPPING_SIZE.fullmatch(line)):
            found.kib[size[1]] = int(size[2])
    if found is not None:
        yield found


def names(folder: str) -> list[str]:
    """What is in a folder of /proc; empty for a process that ended."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def open_tcp_connections(pids: Iterable[int], proc: str = "/proc") -> list[str]:
    """TCP connections (not listeners) held by the processes, as `local -> remote` in the kernel's order."""
    found = []
    for pid in pids:
        inodes = {target[8:-1] for target in _descriptors(pid, proc) if target.startswith("socket:[")}
        if not inodes:
            continue
        for row in _tcp_rows(f"{proc}/{pid}/net"):
            if row["inode"] in inodes and row["state"] in OPEN_TCP_STATES:
                found.append(f"{row['local']} -> {row['remote']}")
    return sorted(set(found))


def one_ended(connections: Iterable[str]) -> list[str]:
    """Those connections (as open_tcp_connections tells them) whose other end is not among them."""
    pairs = [tuple(row.split(" -> ")) for row in connections]
    return [f"{local} -> {remote}" for local, remote in pairs if (remote, local) not in pairs]


def unix_connections() -> Iterator[UnixConnection]:
    """The connected UNIX sockets of this network namespace; /proc/net/unix does not tell the other end."""
    wanted = struct.pack(
        "=IHHIIBBHIIIII", 40, SOCK_DIAG, DUMP_REQUEST, 1, 0, socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, 4, 0, 0
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as diagnosis:
        diagnosis.send(wanted)
        while True:
            answer = diagnosis.recv(1 << 16)
            while answer:
                length, kind = struct.unpack_from("=IH", answer)
                if kind != SOCK_DIAG:
                    return
                yield from _unix_connection(answer[16:length])
                answer = answer[-(-length // 4) * 4 :]


def _unix_connection(message: bytes) -> Iterator[UnixConnection]:
    """What one message of the kernel says: family, type, state, a byte, the inode, 8 bytes, then attributes."""
    _, kind, _, _, inode = struct.unpack_from("=BBBBI", message)
    attributes = message[16:]
    while len(attributes) >= 8:
        length, name = struct.unpack_from("=HH", attributes)
        if name == UNIX_DIAG_PEER:
            yield UnixConnection(kind, inode, *struct.unpack_from("=I", attributes, 4))
        attributes = attributes[-(-length // 4) * 4 :]


def port_holder(port: int, proc: str = "/proc") -> str | None:
    """Who listens on the TCP port: `comm (pid N)`, or `a process` if that cannot be read; None if it is free."""
    inodes = {
        row["inode"]
        for row in _tcp_rows(f"{proc}/net")
        if row["state"] == TCP_LISTEN and row["local"].endswith(f":{port}")
    }
    if not inodes:
        return None
    for entry in os.listdir(proc):
        if not entry.isdigit():
            continue
        if any(target[8:-1] in inodes for target in _descriptors(int(entry), proc) if target.startswith("socket:[")):
            return f"{read_text(f'{proc}/{entry}/comm').strip()} (pid {entry})"
    return "a process"


def _descriptors(pid: int, proc: str) -> list[str]:
    folder = f"{proc}/{pid}/fd"
    targets = []
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    for name in names:
        try:
            targets.append(os.readlink(f"{folder}/{name}"))
        except OSError:
            continue
    return targets


def _tcp_rows(folder: str) -> list[dict[str, str]]:
    """The sockets of /proc/net/tcp and tcp6: local and remote address, state and inode of each."""
    rows = []
    for name in ("tcp", "tcp6"):
        for match in TCP_ROW.finditer(read_text(f"{folder}/{name}")):
            rows.append({**match.groupdict(), "local": _address(match["local"]), "remote": _address(match["remote"])})
    return rows


def _address(text: str) -> str:
    """`0100007F:4650` as `127.0.0.1:18000`, through an IPv6 socket too; IPv6 addresses keep the kernel's form."""
    host, port = text.removeprefix(MAPPED_IPV4).split(":")
    if len(host) == 8:
        host = ".".join(str(byte) for byte in reversed(bytes.fromhex(host)))
    return f"{host}:{int(port, 16)}"
