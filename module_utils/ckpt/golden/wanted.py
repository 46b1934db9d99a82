# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be served on a node: written by a play, read by everything that makes, proves and serves a checkpoint of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from ..criu.choice import parse_criu
from ..errors import CkptError
from ..parsing import FormatError, build
from ..server.spec import NAME, parse_server
from ..system import private
from ..system.files import read_json, write_json
from ..system.files import remove as remove_file
from ..vocabulary import GOLDEN_SOURCES, LEVELS, RUNTIMES, SLIMMINGS

FOLDER = "/etc/gpuckpt/servers"
SCHEMA_VERSION = 1
LAST_PORT = 65535
ADDRESS = re.compile(r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9.-]+):)?(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Wanted:
    """A server and how it is checkpointed: as options of the ckpt_* modules, and where its checkpoints are kept.

    `criu` holds build, switches and home; `flags` are for restores; `verify` is the level of digests that a restore compares.
    `listen` is where clients connect, as systemd's ListenStream has it, if that is not the server's own port.
    `source` is `disk`, images in place, or `tar`, one archive: a container's travels to other nodes only so.
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
    listen: str = ""
    source: str = "disk"
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
        problems += [] if self.source in GOLDEN_SOURCES else [f"source must be one of {', '.join(GOLDEN_SOURCES)}"]
        problems += [] if os.path.isabs(self.folder) else ["folder must be an absolute path"]
        problems += [] if self.warmup_requests >= 1 else ["warmup_requests must be 1 or more"]
        if problems:
            raise CkptError("bad_input", f"the server to be served is described wrongly: {'; '.join(problems)}.")

    def ports(self) -> set[int]:
        """The TCP ports that it takes on this node."""
        listened = ADDRESS.fullmatch(self.listen)
        return {int(self.server["port"]), *([int(listened["port"])] if listened else [])}

    def require_apart(self) -> None:
        """Raises CkptError (port_taken) if another server that is described on this node takes one of its ports."""
        # what cannot be read is told by whoever wants to serve it
        for other in readable():
            shared = self.ports() & other.ports()
            if shared and other.name != self.name:
                raise CkptError(
                    "port_taken",
                    f"port {min(shared)} of {self.name} is taken by the server {other.name}, described on this node, too; "
                    "give one of them another port (inference_server_port, serve_listen), or forget one (forget.yml).",
                )

    @classmethod
    def of_options(cls, params: Mapping[str, Any]) -> Wanted:
        """A server as the options of a module describe it. Raises CkptError (bad_input)."""
        keys = (
            "name",
            "runtime",
            "server",
            "folder",
            "slimming",
            "flags",
            "verify",
            "prefetch",
            "warmup_requests",
            "listen",
            "source",
        )
        return cls(**{key: params[key] for key in keys}, criu=params["criu"] or {})

    def write(self) -> bool:
        """Keeps it on the node, for root alone: it holds the server's environment. Returns whether anything changed."""
        path, content = path_of(self.name), asdict(self)
        if _read(path) == content:
            return False
        private.make_folder(FOLDER)
        write_json(path, content)
        return True


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[ADDRESS]:PORT` or `PORT`, which is one of loopback. Raises CkptError (bad_input)."""
    match = ADDRESS.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= LAST_PORT:
        raise CkptError(
            "bad_input", f"{text!r:.80} is no address to listen on; give HOST:PORT, such as 127.0.0.1:19080."
        )
    return (match["host"] or "127.0.0.1").strip("[]"), int(match["port"])


def path_of(name: str) -> str:
    """Where the description of a server lies. Raises CkptError (bad_input) for what cannot be a name."""
    if not NAME.fullmatch(name):
        raise CkptError("bad_input", f"{name!r:.80} is no name of a server; it has letters, digits, `_`, `.` and `-`.")
    return f"{FOLDER}/{name}.json"


def named(name: str) -> str:
    """The name, if a server can have it. Raises CkptError (bad_input)."""
    path_of(name)
    return name


def names() -> list[str]:
    """The servers that are described on this node."""
    found = os.listdir(FOLDER) if os.path.isdir(FOLDER) else []
    return sorted(entry.removesuffix(".json") for entry in found if entry.endswith(".json"))


def readable() -> list[Wanted]:
    """The descriptions on this node that can be read."""
    found = []
    for name in names():
        with suppress(CkptError):
            found.append(load(name))
    return found


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
