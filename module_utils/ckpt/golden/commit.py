# SPDX-License-Identifier: GPL-3.0-or-later
"""The commit mark of a golden checkpoint: written last, after a trial restore has passed the truth gate."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass

from ..checkpoints import replacement
from ..checkpoints.manifest import is_complete, staged_weights
from ..errors import CkptError
from ..parsing import FormatError, build
from ..system import private
from ..system.files import read_json, remove, write_json
from .identity import Identity
from .wanted import Wanted

NAME = "golden.json"
SCHEMA_VERSION = 1

# how the name of what is being removed begins
REMOVED = ".removed-"


@dataclass(frozen=True)
class Golden:
    """A checkpoint that is good: its folder, what it depends on, when it was made (UTC, ISO 8601), and its trial restore.

    `instance` is the name of the server that it was taken of. `first_token_s` is what the trial took from the command to
    the first token; `bytes` is what the images take. `cold_s` is what the start from nothing took, and `made_s` what all of
    the making did; None where that is not known.
    """

    name: str
    instance: str
    folder: str
    identity: Identity
    made_at: str
    first_token_s: float
    bytes: int
    cold_s: float | None = None
    made_s: float | None = None
    schema_version: int = SCHEMA_VERSION


def load(wanted: Wanted) -> Golden | None:
    """The golden checkpoint of a server; None where none was committed, or its files are gone.

    Raises CkptError (images_damaged) for a mark that cannot be read.
    """
    path = _mark(wanted)
    try:
        raw = read_json(path)
        golden = None if raw is None else build(Golden, raw)
    except FormatError as error:
        raise CkptError("images_damaged", f"{path} cannot be read ({error}); run checkpoint.yml again.") from error
    if golden is None or golden.schema_version != SCHEMA_VERSION or not is_complete(golden.folder):
        return None
    return golden


def noted(wanted: Wanted) -> Golden | None:
    """What was committed last, whatever became of its files: its server is to be removed, too."""
    with suppress(FormatError):
        raw = read_json(_mark(wanted))
        return None if raw is None else build(Golden, raw)
    return None


def save(wanted: Wanted, golden: Golden) -> None:
    """From now on this is the golden checkpoint; those that it replaces are removed."""
    private.make_folder(home(wanted))
    write_json(_mark(wanted), asdict(golden))
    remove_others(wanted, golden.folder)


def finish(wanted: Wanted, golden: Golden) -> None:
    """Ends a commit whose process was killed: what lay there before the mark was written is removed.

    What is newer may be a checkpoint that somebody makes.
    """
    root, committed = home(wanted), os.stat(_mark(wanted)).st_mtime_ns
    for entry in os.scandir(root):
        is_old = entry.name.startswith(REMOVED) or entry.stat().st_mtime_ns <= committed
        if entry.path != golden.folder and entry.is_dir() and is_old:
            remove_one(entry.path)


def remove_others(wanted: Wanted, kept: str | None) -> None:
    """Removes the checkpoints of a server, but for one."""
    root = home(wanted)
    for entry in os.listdir(root) if os.path.isdir(root) else []:
        path = os.path.join(root, entry)
        if path != kept and os.path.isdir(path):
            remove_one(path)


def remove_one(folder: str) -> None:
    """Removes one checkpoint, finished or not, with the weights that were staged for it."""
    for trace in {folder, *replacement.traces(folder)}:
        for path in staged_weights(trace):
            remove(path)
        # a name that tells what it is, if this is killed
        gone = os.path.join(os.path.dirname(trace), REMOVED + os.path.basename(trace).removeprefix(REMOVED))
        if trace != gone:
            shutil.rmtree(gone, ignore_errors=True)
            with suppress(FileNotFoundError):
                os.rename(trace, gone)
        shutil.rmtree(gone, ignore_errors=True)


def forget(wanted: Wanted) -> bool:
    """Removes mark and checkpoints of a server. Returns whether there was anything."""
    root = home(wanted)
    there = os.path.isdir(root)
    remove(_mark(wanted))
    remove_others(wanted, None)
    shutil.rmtree(root, ignore_errors=True)
    return there


def home(wanted: Wanted) -> str:
    """The folder that holds the checkpoints of one server, and their mark."""
    return os.path.join(wanted.folder, wanted.name)


def folder_for(wanted: Wanted, name: str) -> str:
    """Where a checkpoint of this name is made."""
    return os.path.join(home(wanted), name)


def _mark(wanted: Wanted) -> str:
    return os.path.join(home(wanted), NAME)
