# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a checkpoint: what a restore is compared with."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import CkptError
from ..parsing import FormatError, build
from ..system.files import read_json, write_json
from ..system.procfs import Task
from ..vocabulary import ARCHIVES

SCHEMA_VERSION = 2
NAME = "checkpoint.json"
# key of the manifest's own digest
DIGEST = "sha256"
# the archive of each source that is one
ARCHIVE_NAMES: dict[str, str] = {kind: f"checkpoint.{kind}" for kind in ARCHIVES}
OWN_NAMES = {NAME, "images", "work", "expendable", *ARCHIVE_NAMES.values()}


@dataclass(frozen=True)
class Layout:
    """Folders and files of one checkpoint."""

    folder: str
    source: str

    @property
    def images(self) -> str:
        """CRIU's images."""
        return os.path.join(self.folder, "images")

    @property
    def work(self) -> str:
        """Logs and statistics."""
        return os.path.join(self.folder, "work")

    @property
    def links(self) -> str:
        """Copies of files that a restore takes away from the host, see remaps."""
        return os.path.join(self.work, "links")

    @property
    def archive(self) -> str | None:
        """The archive, None if the images lie in place."""
        name = ARCHIVE_NAMES.get(self.source)
        return os.path.join(self.folder, name) if name else None

    @property
    def manifest(self) -> str:
        """The manifest, written last: without it the checkpoint is incomplete."""
        return os.path.join(self.folder, NAME)


@dataclass
class File:
    """Size in bytes and digest (hexadecimal) of a file; None where no digest was taken."""

    bytes: int
    digest: str | None = None


@dataclass
class Manifest:
    """What was true before the dump. Sizes in bytes."""

    name: str
    runtime: str
    server: str
    created_at: str
    source: str = "store"
    slimming: str = "none"
    tcp_established: bool = False
    flags: list[str] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    cuda_nspids: list[int] = field(default_factory=list)
    gpu_bytes: int | None = None
    # UUIDs of the GPUs that its processes use
    gpus: list[str] = field(default_factory=list)
    counter: int | None = None
    # what one canary adds to it
    counter_step: int = 1
    canary_tokens: list[str] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    images_total: int = 0
    build: dict[str, Any] = field(default_factory=dict)
    switches: dict[str, str] = field(default_factory=dict)
    instance: dict[str, Any] = field(default_factory=dict)
    # bytes and digest of each file that a restore reads, see digests; no digest where it was not asked for
    files: dict[str, File] = field(default_factory=dict)
    # what the server itself said of its memory; None if servers of its kind do not tell
    memory_digest: str | None = None
    # weights files that belong to the checkpoint and lie next to it
    staged: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    @property
    def identities(self) -> set[tuple[int, str]]:
        """(number in the namespace, name) of each process."""
        return {(task["nspid"], task["comm"]) for task in self.tasks}

    @property
    def plain_processes(self) -> int:
        """How many processes use no GPU."""
        return len(self.tasks) - len(self.cuda_nspids)

    def write(self, layout: Layout) -> None:
        """Completes the checkpoint."""
        write_json(layout.manifest, sealed(asdict(self)))


def load(layout: Layout) -> Manifest:
    """The manifest of a checkpoint. Raises CkptError (images_missing, images_truncated, images_damaged, bad_input)."""
    try:
        raw = read_json(layout.manifest)
    except FormatError as error:
        raise CkptError("images_truncated", f"{layout.manifest} {error}; take the checkpoint again.") from error
    if raw is None:
        raise CkptError(
            "images_missing",
            f"there is no finished checkpoint in {layout.folder} (no {NAME}); take it with ckpt_checkpoint first.",
        )
    if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
        raise CkptError(
            "bad_input", f"{layout.manifest} was written by another version of gpuckpt; take the checkpoint again."
        )
    if raw != sealed({key: value for key, value in raw.items() if key != DIGEST}):
        raise CkptError(
            "images_damaged", f"{layout.manifest} is damaged (its digest differs); take the checkpoint again."
        )
    try:
        del raw[DIGEST]
        return _checked(build(Manifest, raw))
    except FormatError as error:
        raise CkptError(
            "images_truncated", f"{layout.manifest} is damaged: {error}; take the checkpoint again."
        ) from error


def _checked(manifest: Manifest) -> Manifest:
    """The manifest. Raises FormatError for numbers that no process has: what has them is waited for, and killed."""
    for position, task in enumerate(manifest.tasks):
        if build(Task, task, f"tasks[{position}]").pid <= 1 or task["nspid"] < 1:
            raise FormatError(f"tasks[{position}] has a number that no process of a server has")
    return manifest


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a manifest with its own digest, which does not depend on how it is written down."""
    return {**content, DIGEST: hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()}


def is_complete(folder: str) -> bool:
    """Whether a checkpoint in the folder was finished."""
    return os.path.isfile(os.path.join(folder, NAME))


def is_checkpoint(folder: str) -> bool:
    """Whether the folder is one of ours, finished or not, and may be deleted."""
    return is_complete(folder) or set(os.listdir(folder)) <= OWN_NAMES


def staged_weights(folder: str) -> list[str]:
    """Weights that a checkpoint has next to it; empty where that cannot be read."""
    try:
        raw = read_json(os.path.join(folder, NAME)) or {}
        return [path for path in map(str, raw.get("staged") or []) if os.path.basename(path).startswith("weights-")]
    except (ValueError, AttributeError):
        return []
