# SPDX-License-Identifier: GPL-3.0-or-later
"""CRIU's image files: sizes by kind, and whether a checkpoint is whole."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from ..errors import CkptError
from ..system.commands import Commands
from . import image
from .image import ImageError, PagemapEntry, PagemapHead

ARCHIVE_TIMEOUT_S = 3600.0
# what tar gives as the size of a file, at most 2⁶³ bytes
SIZE = re.compile(r"[0-9]{1,19}")

KINDS = {
    "pages": "pages",
    # what programs put aside themselves (docs/staging.md)
    "gpu": "gpu",
    "pagemap": "pagemap",
    "core": "core",
    "mm": "mm",
    "files": "files",
    "fdinfo": "files",
    "fs": "files",
    "ghost": "files",
    "remap": "files",
    "tmpfs": "rootfs",
    "mountpoints": "rootfs",
    "rootfs": "rootfs",
    "pstree": "tree",
    "ids": "tree",
    "inventory": "tree",
    "cgroup": "cgroup",
    "tcp": "network",
    "netdev": "network",
    "ifaddr": "network",
    "route": "network",
    "route6": "network",
    "rule": "network",
    "iptables": "network",
    "ip6tables": "network",
    "nftables": "network",
    "netns": "network",
}


@dataclass
class Report:
    """What an images folder holds: bytes by kind, the memory that the pagemaps ask for, and what is wrong with it."""

    bytes_by_kind: dict[str, int] = field(default_factory=dict)
    total_bytes: int = 0
    pagemap_bytes: int = 0
    errors: list[str] = field(default_factory=list)
    missing: bool = False


def kind_of(name: str) -> str:
    """The kind an image file counts under; `other` for what is small and rare."""
    stem = name.removesuffix(".img")
    return KINDS.get(stem, KINDS.get(stem.split("-", 1)[0], "other"))


def inspect(folder: str) -> Report:
    """Sizes by kind, and the verification of a folder of images."""
    report = Report()
    for name, size in _files(folder):
        kind = kind_of(name)
        report.bytes_by_kind[kind] = report.bytes_by_kind.get(kind, 0) + size
        report.total_bytes += size
    verify(folder, report)
    return report


def inspect_archive(commands: Commands, path: str) -> tuple[dict[str, int], int]:
    """(bytes by kind, total bytes) of an archive that podman exported, before its compression.

    Raises CkptError: images_truncated if it cannot be read to its end, runtime_failed if tar lacks the decompressor.
    """
    result = commands.run(["tar", "--list", "--verbose", "--numeric-owner", f"--file={path}"], ARCHIVE_TIMEOUT_S)
    if result.rc != 0:
        lines = result.stderr.strip().splitlines()[-4:]
        missing = re.search(r"(\S+): Cannot exec", result.stderr)
        if missing:
            raise CkptError("runtime_failed", f"{path} cannot be read: install {missing[1]} on this node.", lines)
        raise CkptError("images_truncated", f"the archive {path} is damaged; take the checkpoint again.", lines)
    sizes: dict[str, int] = {}
    for size, name in listing(result.stdout):
        kind = kind_of(os.path.basename(name)) if name.startswith("checkpoint/") else archive_kind(name)
        sizes[kind] = sizes.get(kind, 0) + size
    return sizes, sum(sizes.values())


def listing(text: str) -> list[tuple[int, str]]:
    """(bytes, name) of the regular files in the output of `tar --list --verbose`."""
    rows = (line.split(None, 5) for line in text.splitlines() if line.startswith("-"))
    return [(int(row[2]), row[5].removeprefix("./")) for row in rows if len(row) == 6 and SIZE.fullmatch(row[2])]


def archive_kind(name: str) -> str:
    """The kind of what podman packs together with CRIU's images."""
    return "rootfs" if name.startswith(("rootfs-diff", "devshm", "deleted", "volumes")) else "container"


def require_whole(folder: str) -> Report:
    """The report of a checkpoint. Raises CkptError (images_missing, images_truncated, file_unusable) if it cannot be restored."""
    unusable = [name for name in _names(folder) if name.endswith(".img") and not os.path.isfile(f"{folder}/{name}")]
    if unusable:
        raise CkptError(
            "file_unusable",
            f"{folder}/{sorted(unusable)[0]} is not a file that can be read (a folder, or a link that leads nowhere); "
            "put the image back, or take the checkpoint again.",
            sorted(unusable),
        )
    report = inspect(folder)
    if report.missing:
        raise CkptError("images_missing", f"{report.errors[0]}; take the checkpoint (again), or name the right folder.")
    if report.errors:
        raise CkptError(
            "images_truncated",
            f"the checkpoint in {folder} is damaged: {'; '.join(report.errors)}. Take the checkpoint again.",
            report.errors,
        )
    return report


def verify(folder: str, report: Report) -> None:
    """Checks that the inventory is whole, and each pages image against the pagemaps that point into it."""
    inventory = os.path.join(folder, "inventory.img")
    if not os.path.isfile(inventory):
        report.missing = True
        report.errors.append(f"there is no checkpoint in {folder} (no inventory.img)")
        return
    try:
        list(image.entries(inventory, image.INVENTORY))
    except ImageError as error:
        report.errors.append(f"inventory.img {error}")
    if not os.path.isfile(os.path.join(folder, "pstree.img")):
        report.errors.append("pstree.img is missing")
    expected: dict[int, int] = {}
    for name, _size in _files(folder):
        if not name.startswith("pagemap-"):
            continue
        try:
            pages_id, size = read_pagemap(os.path.join(folder, name))
        except ImageError as error:
            report.errors.append(f"{name} {error}")
            continue
        expected[pages_id] = expected.get(pages_id, 0) + size
    for pages_id, size in sorted(expected.items()):
        report.pagemap_bytes += size
        _check_pages(folder, f"pages-{pages_id}.img", size, report.errors)


def _check_pages(folder: str, name: str, expected: int, errors: list[str]) -> None:
    path = os.path.join(folder, name)
    actual = os.path.getsize(path) if os.path.exists(path) else None
    if actual is None and expected:
        errors.append(f"{name} is missing ({expected} bytes expected)")
    elif actual is not None and actual != expected:
        errors.append(f"{name} holds {actual} bytes, its pagemap says {expected}")


def read_pagemap(path: str) -> tuple[int, int]:
    """(id of the pages image, bytes of it that are used) of one pagemap image. Raises ImageError if it is damaged."""
    messages = image.entries(path, image.PAGEMAP)
    pages_id = PagemapHead.of(next(messages, b"")).pages_id
    return pages_id, sum(PagemapEntry.of(message).present_bytes for message in messages)


def numbers(folder: str) -> set[int]:
    """Numbers of the processes and threads that the images in `folder` restore: each has a file core-N.img."""
    found = (re.fullmatch(r"core-([0-9]{1,9})\.img", name) for name, _size in _files(folder))
    return {int(match[1]) for match in found if match}


def _files(folder: str) -> list[tuple[str, int]]:
    """Name and size of each file."""
    paths = ((name, os.path.join(folder, name)) for name in sorted(_names(folder)))
    return [(name, os.path.getsize(path)) for name, path in paths if os.path.isfile(path)]


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
