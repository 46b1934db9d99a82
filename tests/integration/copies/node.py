#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node for tests of copies: everything that gpuckpt keeps on a node lies below ROOT, and one process is one call.

    node.py ROOT VERB OPTIONS        VERB: make, publish, fetch, forget, state; OPTIONS: a JSON object

It is no stand-in for anything but a node's folders: parts, rclone, skopeo, age and the remote are real. What `make` makes is a
checkpoint as files, and no server runs. With `driver` in the options the node says that it has that one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "module_utils"))

from ckpt.checkpoints import digests, manifest
from ckpt.copies import fetch, publish, remotes, transfer
from ckpt.errors import CkptError, os_errors_explained
from ckpt.golden import commit, identity, start, supervisor, wanted
from ckpt.runtimes import process
from ckpt.safety import locks

NAME = "reference"


def settle(root: Path, driver: str | None) -> None:
    """Moves all folders of the node below `root`."""
    locks.FOLDER = f"{root}/run"
    locks.LOCK_FILE = f"{root}/run/lock"
    locks.LANE_ENV_FILE = f"{root}/run/criu.env"
    transfer.LOCKS = f"{root}/run/copies"
    supervisor.FOLDER = f"{root}/run/serving"
    process.INSTANCES = f"{root}/run/instances"
    wanted.FOLDER = f"{root}/etc/servers"
    publish.JOURNALS = f"{root}/var/copies"
    remotes.SCRATCH = f"{root}/var/copies/scratch"
    if driver:
        identity.driver = lambda node: {"version": driver}


def described(root: Path, weights: str, verify: str) -> wanted.Wanted:
    """The server of these tests: the same on every node but for its files' times."""
    server = {"name": NAME, "kind": "reference", "model": "m", "port": 18080, "command": ["/bin/true", weights]}
    return wanted.Wanted(NAME, "process", {**server, "stdout": "/dev/null"}, f"{root}/golden", verify=verify)


def made(served: wanted.Wanted, mib: int, seed: int) -> dict[str, Any]:
    """Writes a checkpoint as files: small ones, and memory with holes in it."""
    instance = start.new_instance(served)
    layout = manifest.Layout(commit.folder_for(served, instance), "disk")
    os.makedirs(layout.images, mode=0o700)
    os.makedirs(layout.links, mode=0o700)
    for number in range(4):
        Path(layout.images, f"core-{number}.img").write_bytes(bytes([number, seed % 256]) * 2000)
    Path(layout.links, "index.json").write_text('{"paths": []}')
    block = os.urandom(1 << 20)
    with Path(layout.images, "pages-1.img").open("wb") as out:
        for number in range(mib):
            out.write(block[number:] + block[:number])
            # one MiB of data, one of hole
            out.seek(1 << 20, os.SEEK_CUR)
        out.truncate(mib << 21)
    proof = manifest.Manifest(NAME, "process", NAME, "2026-01-01T00:00:00+00:00", source="disk")
    digests.take(layout, proof, "pages")
    proof.write(layout)
    golden = commit.Golden(
        NAME, instance, layout.folder, identity.of(served), "2026-01-01T00:00:00+00:00", 0.2, mib << 20
    )
    commit.save(served, golden)
    served.write()
    return {"instance": instance}


def state(served: wanted.Wanted) -> dict[str, Any]:
    """What the node would serve from, read whole."""
    found = start.examine(served)
    if found.golden is None or found.misfits:
        return {"instance": None, "misfits": found.misfits}
    layout = manifest.Layout(found.golden.folder, "disk")
    digests.require_intact(layout, manifest.load(layout), "pages")
    blocks = os.stat(os.path.join(layout.images, "pages-1.img")).st_blocks * 512
    folders = sorted(
        entry for entry in os.listdir(commit.home(served)) if os.path.isdir(os.path.join(commit.home(served), entry))
    )
    return {"instance": found.golden.instance, "misfits": [], "pages_on_disk": blocks, "folders": folders}


def act(root: Path, verb: str, given: dict[str, Any]) -> dict[str, Any]:
    """One call."""
    settle(root, given.pop("driver", None))
    served = described(root, given.pop("weights", "/bin/true"), given.pop("verify", "pages"))
    if verb == "make":
        return made(served, given["mib"], given.get("seed", 0))
    if verb == "state":
        return state(served)
    version, published, check = given.pop("version", None), given.pop("published", False), given.pop("check", False)
    defaults = {
        "rclone": None,
        "registry": None,
        "credentials": None,
        "verify_tls": True,
        "age_identity": None,
        "transfers": 4,
    }
    options = transfer.options_of({"node": root.name, "part_mib": 1, **defaults, **given})
    if verb == "publish":
        return publish.publish(wanted.load(NAME), options, check).as_result()
    if verb == "fetch":
        served.write()
        return fetch.fetch(served, options, version, check).as_result()
    return publish.forget(NAME, options, published, check).as_result()


def main() -> int:
    """Prints the result, or the failure, as JSON."""
    root, verb, given = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    try:
        with os_errors_explained():
            result = {"reason": None, **act(root, verb, given)}
    except CkptError as error:
        result = {"reason": error.reason, "msg": error.message, "log_lines": error.log_lines}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
