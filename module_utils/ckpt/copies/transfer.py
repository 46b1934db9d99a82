# SPDX-License-Identifier: GPL-3.0-or-later
"""What publishing and fetching have in common: one at a time for each name, several parts at once, who this node is."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from ..errors import CkptError
from ..node.inspection import Node
from ..safety import locks
from ..system import private
from .parts import MAX_PART_BYTES
from .remotes import Access
from .secrecy import Keys
from .signatures import Signing

LOCKS = f"{locks.FOLDER}/copies"
LOCK_LIMIT_S = 5.0
DEFAULT_PART_BYTES = 128 << 20
MOST_TRANSFERS = 64
MOST_BY_ITSELF = 4

ItemT = TypeVar("ItemT")


@dataclass
class Outcome:
    """What a call did.

    `version` is the publication, `moved` the bytes of parts that travelled, `because` why, `notes` what is worth to know.
    `said` is the same in one sentence; `published` is what there is, where that was asked for.
    """

    version: str | None = None
    changed: bool = False
    removed: list[str] = field(default_factory=list)
    moved: int = 0
    because: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    said: str = ""

    def as_result(self) -> dict[str, Any]:
        """For the result of a module."""
        found = asdict(self)
        found["moved_bytes"] = found.pop("moved")
        return found


@dataclass(frozen=True)
class Options:
    """How copies travel. `node` is what the play calls this node; `part_bytes` and `transfers` bound the memory that it takes.

    With 0 `transfers` as many go on at once as there are processors, at most MOST_BY_ITSELF.
    """

    access: Access
    keys: Keys = field(default_factory=Keys)
    node: str = ""
    part_bytes: int = DEFAULT_PART_BYTES
    transfers: int = 0
    keep: int = 3
    signing: Signing = field(default_factory=Signing)

    def __post_init__(self) -> None:
        """Raises CkptError (bad_input) that names all that is wrong."""
        problems = [] if 1 << 20 <= self.part_bytes <= MAX_PART_BYTES else ["parts have 1 MiB to 8 GiB"]
        problems += [] if 0 <= self.transfers <= MOST_TRANSFERS else [f"0 to {MOST_TRANSFERS} transfers go on at once"]
        problems += [] if self.keep >= 0 else ["keep is 0 (all), or how many"]
        if problems:
            raise CkptError("bad_input", f"copies cannot be made like this: {'; '.join(problems)}.")

    @property
    def threads(self) -> int:
        """How many parts travel at once."""
        return self.transfers or min(MOST_BY_ITSELF, len(os.sched_getaffinity(0)))


def node_id(called: str, node: Node | None = None) -> str:
    """Tells this node from all others that publish or fetch: machines made of one image have other names."""
    machine = (node or Node()).read("/etc/machine-id") or ""
    return hashlib.sha256("\0".join([machine, socket.gethostname(), called]).encode()).hexdigest()[:8]


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Within, nobody else on this node publishes, fetches or forgets copies of this name. Raises CkptError (node_taken).

    It is not the node's lock: servers are restored meanwhile.
    """
    # what rclone writes to a folder is for its owner alone
    os.umask(0o077)
    private.make_folder(locks.FOLDER)
    private.make_folder(LOCKS)
    descriptor = locks.open_private(f"{LOCKS}/{name}.lock")
    try:
        if not locks.take_within(descriptor, time.monotonic() + LOCK_LIMIT_S):
            raise CkptError(
                "node_taken", f"copies of {name} are being published or fetched on this node; wait for that, or end it."
            )
        yield
    finally:
        os.close(descriptor)


def each(work: Callable[[ItemT], None], items: Iterable[ItemT], threads: int) -> None:
    """Does the work for each item, several at a time. Raises the first error; what had begun has ended then."""
    stop = threading.Event()

    def unless_stopped(item: ItemT) -> None:
        if not stop.is_set():
            work(item)

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(unless_stopped, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def options_of(params: Mapping[str, Any]) -> Options:
    """The options of a module. Raises CkptError (bad_input)."""
    access = Access(params["rclone"], params["registry"], params["credentials"], params["verify_tls"])
    keys = Keys(params.get("age_recipients") or [], params["age_identity"])
    part_bytes = (params.get("part_mib") or DEFAULT_PART_BYTES >> 20) << 20
    keep = 3 if params.get("keep") is None else params["keep"]
    signing = Signing(params.get("sign_key"), params.get("trusted_signers") or [])
    return Options(access, keys, params["node"], part_bytes, params["transfers"], keep, signing)
