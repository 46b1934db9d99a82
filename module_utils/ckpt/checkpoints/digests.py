# SPDX-License-Identifier: GPL-3.0-or-later
"""Digests of a checkpoint's files: what is restored is what the dump wrote.

Each file has the sha256 of the sha256 of its pieces, so that all processors read one large file together. Metadata are
read always. The memory itself (page images) is as large as the server, and is read on demand. An archive is one file that
holds both: it is read always.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..errors import CkptError
from .manifest import File, Layout, Manifest

PIECE_BYTES = 4 << 20
READ_BYTES = 256 << 10
MAX_THREADS = 32
PAGES = re.compile(r"(pages-\d+|mapped-base-[0-9a-f]+|gpu-staged-\d+)\.img")
# how many files are named in a message
NAMED = 4


@dataclass(frozen=True)
class Effort:
    """What the digests cost: seconds, and the bytes that were read."""

    seconds: float
    bytes: int

    def as_record(self) -> dict[str, float]:
        """For a record."""
        return {"seconds": round(self.seconds, 6), "bytes": self.bytes}


def take(layout: Layout, manifest: Manifest, level: str) -> Effort:
    """Puts size and digest of each file of the checkpoint into the manifest; of page images with level `pages` only."""
    began = time.monotonic()
    names = list(_covered(layout))
    sizes = {name: os.path.getsize(os.path.join(layout.folder, name)) for name in names}
    found = _digests(
        layout.folder, {name: size for name, size in sizes.items() if level == "pages" or not _is_pages(name)}
    )
    manifest.files = {name: File(size, found.get(name)) for name, size in sizes.items()}
    return Effort(time.monotonic() - began, sum(sizes[name] for name in found))


def require_intact(layout: Layout, manifest: Manifest, level: str) -> Effort:
    """Compares the files with the manifest, page images with level `pages` only.

    Raises CkptError: images_damaged if a file is missing, new, or not what the dump wrote; bad_input if the digests of the
    pages were not taken.
    """
    began = time.monotonic()
    asked = {name: file.bytes for name, file in manifest.files.items() if level == "pages" or not _is_pages(name)}
    if any(manifest.files[name].digest is None for name in asked):
        raise CkptError(
            "bad_input",
            f"the checkpoint {manifest.name} has no digests of its memory; take it with digests: pages, or set verify: metadata.",
        )
    errors = list(_other_files(layout, manifest))
    found = {} if errors else _digests(layout.folder, asked)
    errors += [f"{name} has other contents" for name, digest in found.items() if digest != manifest.files[name].digest]
    if errors:
        more = f" and {len(errors) - NAMED} more" if len(errors) > NAMED else ""
        raise CkptError(
            "images_damaged",
            f"the checkpoint in {layout.folder} is not what the dump wrote: {'; '.join(errors[:NAMED])}{more}. "
            "Take the checkpoint again, or copy it again from where it is whole.",
            errors,
        )
    return Effort(time.monotonic() - began, sum(asked.values()))


def covered(layout: Layout) -> list[str]:
    """The files that a restore reads, relative to the checkpoint's folder."""
    return sorted(_covered(layout))


def of_files(folder: str, names: Iterable[str]) -> dict[str, str]:
    """The digest (hexadecimal) of files below a folder."""
    return _digests(folder, {name: os.path.getsize(os.path.join(folder, name)) for name in names})


def _other_files(layout: Layout, manifest: Manifest) -> Iterator[str]:
    """What a look at names and sizes shows."""
    present = set(_covered(layout))
    for name in sorted(present | set(manifest.files)):
        if name not in present:
            yield f"{name} is missing"
        elif name not in manifest.files:
            yield f"{name} does not belong to it"
        else:
            size, expected = os.path.getsize(os.path.join(layout.folder, name)), manifest.files[name].bytes
            if size != expected:
                yield f"{name} holds {size} bytes instead of {expected}"


def _covered(layout: Layout) -> Iterator[str]:
    """The files that a restore reads, relative to the checkpoint's folder: images or archive, and files linked back."""
    if layout.archive:
        if os.path.lexists(layout.archive):
            yield os.path.basename(layout.archive)
    else:
        yield from _files_below(layout.folder, layout.images)
    yield from _files_below(layout.folder, layout.links)


def _files_below(folder: str, top: str) -> Iterator[str]:
    for parent, _, names in os.walk(top):
        yield from (os.path.relpath(os.path.join(parent, name), folder) for name in names)


def _is_pages(name: str) -> bool:
    return PAGES.fullmatch(os.path.basename(name)) is not None


def _digests(folder: str, sizes: dict[str, int]) -> dict[str, str]:
    """The digest (hexadecimal) of each file, all pieces of all files read by as many threads as there are processors."""
    pieces = [(name, start) for name, size in sizes.items() for start in range(0, max(size, 1), PIECE_BYTES)]
    with ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0)))) as pool:
        parts = pool.map(lambda piece: _piece_digest(os.path.join(folder, piece[0]), piece[1]), pieces)
        roots = {name: hashlib.sha256() for name in sizes}
        for (name, _), part in zip(pieces, parts, strict=True):
            roots[name].update(part)
    return {name: root.hexdigest() for name, root in roots.items()}


def _piece_digest(path: str, start: int) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as source:
        for offset in range(start, start + PIECE_BYTES, READ_BYTES):
            # both let other threads run
            part = os.pread(source.fileno(), READ_BYTES, offset)
            digest.update(part)
            if len(part) < READ_BYTES:
                break
    return digest.digest()
