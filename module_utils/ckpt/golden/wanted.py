# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be served on a node: written by a play, read by everything that makes, proves and serves a checkpoint of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..criu.choice import parse_criu
from ..errors import CkptError
from ..parsing import FormatError, build
from ..server.spec import NAME, parse_server
from ..system import private
from ..system.files import read_json, write_json
from ..system.files import remove as remove_file
from ..vocabulary import LEVELS, RUNTIMES, SLIMMINGS

FOLDER = "/etc/gpuckpt/servers"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Wanted:
    """A server and how it is checkpointed: as options of the ckpt_* modules, and where its checkpoints are kept.

    `criu` holds build, switches and home; `flags` are for restores; `verify` is the level of digests that a restore compares.
    """

    name: str
    runtime: str
    server: dict[str, Any]
    folder: str
    criu: dict[str, Any] = field(default_factory=dict)
    slimming: str = "none"
    flags: list[str] = field(default_factory=list)
    verify: str = "metadata"
    prefetch: bool = False
    warmup_requests: int = 5
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Raises CkptError (bad_input) that names what is wrong."""
        if self.runtime not in RUNTIMES:
            raise CkptError("bad_input", f"the runtime of {self.name} must be one of {', '.join(RUNTIMES)}.")
        parse_server(self.server, self.runtime)
        parse_criu(self.criu)
        problems = [] if NAME.fullmatch(self.name) else ["name must be letters, digits, `_`, `.` or `-`"]
        problems += [] if self.slimming in SLIMMINGS else [f"slimming must be one of {', '.join(SLIMMINGS)}"]
        problems += [] if self.verify in LEVELS else [f"verify must be one of {', '.join(LEVELS)}"]
        problems += [] if os.path.isabs(self.folder) else ["folder must be an absolute path"]
        problems += [] if self.warmup_requests >= 1 else ["warmup_requests must be 1 or more"]
        if problems:
            raise CkptError("bad_input", f"the server to be served is described wrongly: {'; '.join(problems)}.")

    def write(self) -> bool:
        """Keeps it on the node, for root alone: it holds the server's environment. Returns whether anything changed."""
        path, content = path_of(self.name), asdict(self)
        if _read(path) == content:
            return False
        private.make_folder(FOLDER)
        write_json(path, content)
        return True


def path_of(name: str) -> str:
    """Where the description of a server lies. Raises CkptError (bad_input) for what cannot be a name."""
    if not NAME.fullmatch(name):
        raise CkptError("bad_input", f"{name!r:.80} is no name of a server; it has letters, digits, `_`, `.` and `-`.")
    return f"{FOLDER}/{name}.json"


def names() -> list[str]:
    """The servers that are described on this node."""
    found = os.listdir(FOLDER) if os.path.isdir(FOLDER) else []
    return sorted(entry.removesuffix(".json") for entry in found if entry.endswith(".json"))


def remove(name: str) -> None:
    """Forget what was to be served."""
    remove_file(path_of(name))


def load(name: str) -> Wanted:
    """The description of a server. Raises CkptError (bad_input)."""
    path = path_of(name)
    raw = _read(path)
    if raw is None:
        raise CkptError(
            "bad_input",
            f"no server {name} is described on this node (there are: {', '.join(names()) or 'none'}); "
            "run checkpoint.yml for this node first.",
        )
    try:
        return parse(raw)
    except FormatError as error:
        raise CkptError("bad_input", f"{path} cannot be read ({error}); run checkpoint.yml again.") from error


def parse(raw: Mapping[str, Any]) -> Wanted:
    """A description from a document. Raises FormatError, and CkptError (bad_input) for values that are wrong."""
    wanted = build(Wanted, raw)
    if wanted.schema_version != SCHEMA_VERSION:
        raise FormatError("was written by another version of gpuckpt")
    return wanted


def _read(path: str) -> Any:
    try:
        return read_json(path)
    except FormatError:
        return None
