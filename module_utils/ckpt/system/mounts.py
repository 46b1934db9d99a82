# SPDX-License-Identifier: GPL-3.0-or-later
"""The one reader of /proc/N/mountinfo.

A line has words, of which the kernel writes blanks, tabs, line feeds and backslashes as octal numbers:

    number parent device root point options tag* - fstype source options-of-the-file-system
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .files import read_text

SELF = "/proc/self/mountinfo"
# words end at blanks alone: a name may hold any other white space
LINE = re.compile(
    r"^(?P<number>[0-9]{1,19}) (?P<parent>[0-9]{1,19}) (?P<device>[^ \n]+) (?P<root>[^ \n]+) (?P<point>[^ \n]+) "
    r"(?P<options>[^ \n]+)(?: [^ \n]+)*? - (?P<fstype>[^ \n]+)(?: (?P<source>[^ \n]*))?(?: (?P<super>[^ \n]*))?",
    re.MULTILINE,
)
ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A mount. `device` is the file system's number, `root` the part of it that is mounted, `source` where it is from.

    The options are those of the mount and of its file system.
    """

    number: int
    parent: int
    device: str
    root: str
    point: str
    options: frozenset[str]
    fstype: str
    source: str


def parse(text: str) -> Iterator[Mount]:
    """The mounts in the text of a mountinfo, in the kernel's order; lines of any other form are left out."""
    for line in LINE.finditer(text):
        options = {*line["options"].split(","), *(line["super"] or "").split(",")} - {""}
        yield Mount(
            number=int(line["number"]),
            parent=int(line["parent"]),
            device=line["device"],
            root=_plain(line["root"]),
            point=_plain(line["point"]),
            options=frozenset(options),
            fstype=line["fstype"],
            source=_plain(line["source"] or ""),
        )


def _plain(word: str) -> str:
    return ESCAPED.sub(lambda match: chr(int(match[1], 8)), word)


def of_process(pid: int | str, proc: str = "/proc") -> Iterator[Mount]:
    """The mounts that a process (a number, or `self`) sees, in the kernel's order; none if it ended."""
    return parse(read_text(f"{proc}/{pid}/mountinfo"))


def points(mountinfo: str = SELF) -> list[str]:
    """Where something is mounted, as this process sees it, the first mount first."""
    return [mount.point for mount in parse(read_text(mountinfo))]


def layers_at(point: str, mountinfo: str = SELF) -> int:
    """How many mounts lie on one another at `point`; a bind of the same file system shows here only."""
    return points(mountinfo).count(point)
