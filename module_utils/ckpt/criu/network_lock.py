# SPDX-License-Identifier: GPL-3.0-or-later
"""CRIU's lock of the network: packet filter rules that it takes back itself, unless it is killed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence

from ..system import ending
from ..system.commands import SYSTEM_PATH, Commands

IPTABLES = ("iptables", "ip6tables")
# CRIU's own packets carry a mark, all others are dropped; where it locks a whole namespace, in a chain of this name
OURS = re.compile(r"--mark 0xc114\b|-A CRIU |-j CRIU$", re.IGNORECASE)
CHAIN = "-N CRIU"
NFT_TABLE = re.compile(r"^table (inet CRIU-\d+)$", re.MULTILINE)
LIMIT_S = 20.0


def remove_stale(commands: Commands, pid: int | None = None) -> None:
    """Takes back the lock that a killed CRIU has left: with it a server that runs answers nobody.

    Nothing is changed while a CRIU is at work, whose lock it may be.

    :param pid: a process whose network namespace is looked at, too.
    """
    if any(process.comm == "criu" and not process.ended for process in ending.processes()):
        return
    for enter in ([], ["nsenter", f"--net=/proc/{pid}/ns/net"]) if pid else ([],):
        for program in IPTABLES:
            if shutil.which(program, path=SYSTEM_PATH) is not None:
                listed = commands.run([*enter, program, "--wait", "5", "-S"], LIMIT_S).stdout
                for change in _undo(listed):
                    commands.run([*enter, program, "--wait", "5", *change], LIMIT_S)
        if shutil.which("nft", path=SYSTEM_PATH) is not None:
            for table in NFT_TABLE.findall(commands.run([*enter, "nft", "list", "tables"], LIMIT_S).stdout):
                commands.run([*enter, "nft", "delete", "table", *table.split()], LIMIT_S)


def _undo(listed: str) -> Iterator[Sequence[str]]:
    """What takes CRIU's rules back, of rules as `iptables -S` lists them."""
    lines = listed.splitlines()
    for line in lines:
        if OURS.search(line):
            yield ["-D", *line.split()[1:]]
    if CHAIN in lines:
        yield ["-X", "CRIU"]
