# SPDX-License-Identifier: GPL-3.0-or-later
"""What benchmarks have made on this node, so that what a broken-off one left can be named and removed.

Each run has a note of its servers and checkpoints, written before they are made. What a user makes without a run is in no note,
and is never touched.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints import replacement
from ..checkpoints.manifest import is_checkpoint, staged_weights
from ..criu.choice import Criu
from ..errors import CkptError
from ..runtimes import RUNTIMES, make_runtime
from ..runtimes.base import Runtime
from ..server.spec import ServerSpec
from ..system.commands import Commands
from ..system.files import read_json, remove, write_json
from . import claim

NOTES = "/var/lib/gpuckpt/made"
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass
class Made:
    """What one run has made: servers as (runtime, name), checkpoints as folders."""

    run_id: str
    servers: list[tuple[str, str]] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For the note, and for results."""
        return asdict(self)

    def __str__(self) -> str:
        things = [f"server {name} ({runtime})" for runtime, name in self.servers]
        things += [f"checkpoint {folder}" for folder in self.checkpoints]
        return f"of the run {self.run_id}: {', '.join(things)}"


def note(run_id: str | None, server: tuple[str, str] | None = None, checkpoint: str | None = None) -> None:
    """Notes what a run is about to make; without a run there is nothing to note. Needs the node's lock.

    :param server: its runtime and name
    :param checkpoint: its folder
    :raises CkptError: bad_input (the run's name names no file)
    """
    if run_id is None:
        return
    if not RUN_ID.fullmatch(run_id):
        raise CkptError(
            "bad_input", f"record.run_id is {run_id!r}; use letters, digits, dots, - and _, at most 128 of them."
        )
    made = read_note(run_id) or Made(run_id)
    if server is not None and server not in made.servers:
        made.servers.append(server)
    if checkpoint is not None and checkpoint not in made.checkpoints:
        made.checkpoints.append(checkpoint)
    _write(made)


def forget(server: tuple[str, str] | None = None, checkpoints: Iterable[str] = ()) -> None:
    """Notes that these are gone, whichever run made them. Needs the node's lock."""
    gone = set(checkpoints)
    for made in noted():
        made.servers = [one for one in made.servers if one != server]
        made.checkpoints = [folder for folder in made.checkpoints if folder not in gone]
        _write(made)


def keep(run_id: str) -> None:
    """What this run has made is no leftover: its user wants it."""
    remove(_path(run_id))


def noted(notes: str | None = None) -> list[Made]:
    """What is noted, by run."""
    return [
        made
        for path in sorted(Path(notes or NOTES).glob("*.json"))
        if (made := read_note(path.stem, notes)) is not None
    ]


def read_note(run_id: str, notes: str | None = None) -> Made | None:
    """The note of a run; None if there is none that can be read."""
    try:
        raw = read_json(f"{notes or NOTES}/{run_id}.json")
        if raw is None:
            return None
        servers = [(str(runtime), str(name)) for runtime, name in raw["servers"]]
        return Made(run_id, servers, [str(folder) for folder in raw["checkpoints"]])
    except (ValueError, TypeError, KeyError):
        return None


def find(commands: Commands) -> list[Made]:
    """What is left, maybe nothing, of each noted run that does not have the node: it was broken off. Needs the node's lock."""
    present = claim.current()
    found = []
    for made in noted():
        if present is not None and present.run_id == made.run_id and present.holder.lives() is not False:
            continue
        servers = [one for one in made.servers if one[0] in RUNTIMES and _runtime(one, commands).instance().exists]
        found.append(Made(made.run_id, servers, [folder for folder in made.checkpoints if replacement.traces(folder)]))
    return found


def clear(made: Made, commands: Commands) -> None:
    """Removes what a broken-off run left. Raises CkptError. Needs the node's lock."""
    for one in made.servers:
        _runtime(one, commands).remove()
    for folder in (trace for checkpoint in made.checkpoints for trace in replacement.traces(checkpoint)):
        # what else lies at that place by now is not ours
        if is_checkpoint(folder):
            for path in staged_weights(folder):
                remove(path)
            shutil.rmtree(folder)
    remove(_path(made.run_id))


def _runtime(server: tuple[str, str], commands: Commands) -> Runtime:
    """The runtime of a server of which nothing but its name is needed any more."""
    runtime, name = server
    return make_runtime(runtime, ServerSpec(name, "reference", [], "", 0), Criu(), commands)


def _path(run_id: str) -> str:
    return f"{NOTES}/{run_id}.json"


def _write(made: Made) -> None:
    if made.servers or made.checkpoints:
        os.makedirs(NOTES, mode=0o700, exist_ok=True)
        write_json(_path(made.run_id), made.as_dict())
    else:
        remove(_path(made.run_id))
