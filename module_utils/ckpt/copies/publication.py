# SPDX-License-Identifier: GPL-3.0-or-later
"""What was published under a name: the document that is written last, and that tells all without a look at the parts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..checkpoints.manifest import DIGEST, sealed
from ..parsing import FormatError, build, parse_json
from ..server.spec import NAME
from .parts import MAX_PART_BYTES, File

SCHEMA_VERSION = 1
DOCUMENT = "golden.json"
# larger than any memory, smaller than what a file system refuses
MAX_FILE_BYTES = 1 << 45
BEGUN = "begun.json"
ENCRYPTED = ".age"
SIGNATURE = f"{DOCUMENT}.sig"
# sequence, checkpoint, node
VERSION = re.compile(r"[0-9]{6,9}-[0-9a-zA-Z_]{1,32}-[0-9a-f]{8}")
# below the checkpoint's folder, and nowhere else
PATH = re.compile(r"(?:(?:images|work|work/links)/)?[A-Za-z0-9_][A-Za-z0-9_.@:+-]*")
STAGED = "staged/"


@dataclass(frozen=True)
class Part:
    """Size and sha256 (hexadecimal) of a part as it was on the node."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Publication:
    """A published golden checkpoint.

    `identity` is what a restore depends on, as the node that made it had it. `contents` are digests of the files and programs
    that the identity names by size and time: another node has the same files with other times. `server` has a digest for each
    key of the server's description. `node` and `host` are who published it. `cold_s` and `made_s` are those of the checkpoint.
    """

    name: str
    instance: str
    version: str
    node: str
    host: str
    made_at: str
    first_token_s: float
    bytes: int
    source: str
    identity: dict[str, Any]
    part_bytes: int
    contents: dict[str, str] = field(default_factory=dict)
    server: dict[str, str] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    cold_s: float | None = None
    made_s: float | None = None
    schema_version: int = SCHEMA_VERSION

    def document(self) -> dict[str, Any]:
        """For a file."""
        return sealed(asdict(self))


def parse(content: bytes) -> Publication:
    """A publication from its document. Raises FormatError for all that could not be one of ours."""
    raw = parse_json(content)
    if not isinstance(raw, Mapping) or raw.get("schema_version") != SCHEMA_VERSION:
        raise FormatError("was written by another version of gpuckpt")
    if dict(raw) != sealed({key: value for key, value in raw.items() if key != DIGEST}):
        raise FormatError("is damaged (its digest differs)")
    found = build(Publication, {key: value for key, value in raw.items() if key != DIGEST})
    problems = list(_problems(found))
    if problems:
        raise FormatError("; ".join(problems[:4]))
    return found


def _problems(found: Publication) -> Iterable[str]:
    """What would lead out of the checkpoint's folder, or cannot be."""
    for what, name in (("name", found.name), ("instance", found.instance)):
        if not NAME.fullmatch(name):
            yield f"its {what} cannot be one"
    if not VERSION.fullmatch(found.version):
        yield "its version cannot be one"
    if not 1 <= found.part_bytes <= MAX_PART_BYTES:
        yield f"parts of {found.part_bytes} bytes are not what is published"
    paths = [file.path for file in found.files]
    if len(set(paths)) != len(paths):
        yield "a file is there twice"
    for file in found.files:
        if not PATH.fullmatch(file.path.removeprefix(STAGED)):
            yield f"{file.path!r:.80} is no file of a checkpoint"
    out_of_order = [problem for file in found.files for problem in _data_problems(file)]
    yield from out_of_order or _part_problems(found)


def _part_problems(found: Publication) -> Iterable[str]:
    if sum(length for file in found.files for _, length in file.data) != sum(part.bytes for part in found.parts):
        yield "its parts do not hold what its files do"
    sizes = [part.bytes for part in found.parts]
    if any(size != found.part_bytes for size in sizes[:-1]) or not all(
        0 < size <= found.part_bytes for size in sizes[-1:]
    ):
        yield "its parts have other sizes than it says"


def _data_problems(file: File) -> Iterable[str]:
    end = 0
    for entry in file.data:
        if len(entry) != 2 or entry[0] < end or entry[1] < 1:
            yield f"the data of {file.path} are not in order"
            return
        end = sum(entry)
    if end > file.bytes or file.bytes > MAX_FILE_BYTES:
        yield f"the data of {file.path} go beyond its end"


@dataclass(frozen=True)
class Version:
    """One publication as the list of a remote's objects shows it."""

    version: str
    objects: dict[str, int | None]

    @property
    def sequence(self) -> int:
        """Its place in the order of publications, which no clock can disturb."""
        return int(self.version.partition("-")[0])

    @property
    def instance_mark(self) -> str:
        """What its name says of the checkpoint."""
        return self.version.split("-")[1]

    @property
    def node(self) -> str:
        """Who published it."""
        return self.version.rpartition("-")[2]

    @property
    def encrypted(self) -> bool:
        """Whether one needs a key to read it."""
        return DOCUMENT + ENCRYPTED in self.objects

    @property
    def signed(self) -> bool:
        """Whether its document has a signature, of whomever."""
        return SIGNATURE in self.objects

    @property
    def complete(self) -> bool:
        """Whether it was committed."""
        return self.encrypted or DOCUMENT in self.objects

    @property
    def document(self) -> str:
        """The object that commits it."""
        return f"{self.version}/{DOCUMENT}{ENCRYPTED if self.encrypted else ''}"


def versions(listing: Mapping[str, int | None]) -> list[Version]:
    """The publications among a remote's objects, finished or not, the newest first; all else is not ours."""
    found: dict[str, dict[str, int | None]] = {}
    for key, size in listing.items():
        version, _, name = key.partition("/")
        if name and VERSION.fullmatch(version):
            found.setdefault(version, {})[name] = size
    return sorted((Version(*item) for item in found.items()), key=lambda one: (one.sequence, one.version), reverse=True)


def version_name(sequence: int, instance: str, node: str) -> str:
    """The name of a publication. No two nodes have the same, and so none writes over another's."""
    mark = re.sub(r"[^0-9a-zA-Z_]", "", instance.rpartition("-")[2])[:32] or "0"
    return f"{sequence:06d}-{mark}-{node}"


def part_name(number: int, encrypted: bool) -> str:
    """The name of a part; the first has number 1."""
    return f"part-{number:05d}{ENCRYPTED if encrypted else ''}"


def instance_mark(instance: str) -> str:
    """What the name of a publication says of its checkpoint."""
    return version_name(0, instance, "").split("-")[1]
