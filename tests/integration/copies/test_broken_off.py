# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls that are killed at any moment, stores that are full, a network that goes: nothing half-made is used, nothing good is lost.

`GPUCKPT_KILLS` says how many calls are killed, `GPUCKPT_SEED` draws the moments.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from places import Node, folder, needs, running, sftp

pytestmark = pytest.mark.integration
KILLS = int(os.environ.get("GPUCKPT_KILLS", "24"))
SEED = int(os.environ.get("GPUCKPT_SEED", "1"))
MIB = 8


def killed(node: Node, verb: str, after_s: float, **given: Any) -> bool:
    """Kills a call after so long, but not what it has started. Returns whether it was still under way."""
    with node.begin(verb, **given) as process:
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            return True
    return False


def takes_s(node: Node, verb: str) -> float:
    began = time.monotonic()
    done = node.call(verb)
    assert done["reason"] is None, done
    return time.monotonic() - began


@pytest.mark.parametrize("kind", [folder, sftp], ids=["folder", "sftp"])
def test_killed_at_any_moment(kind: Any, scratch: Path) -> None:
    chance = random.Random(SEED)
    with kind(scratch) as place:
        maker, other = Node(scratch / "maker", place.given), Node(scratch / "other", place.given)
        old = maker.call("make", mib=MIB)["instance"]
        longest = {"publish": takes_s(maker, "publish"), "fetch": takes_s(other, "fetch")}
        hit = dict.fromkeys(longest, 0)
        for number in range(KILLS // 4):
            new = maker.call("make", mib=MIB, seed=number)["instance"]
            moment = chance.uniform(0, longest["publish"])
            hit["publish"] += killed(maker, "publish", moment, keep=2)
            versions = (
                {line.name for line in (place.folder / "reference").glob("0*/golden.json")} if place.folder else set()
            )
            assert versions, "what was published before is there"
            # whatever a node finds now is whole, the old one or the new one
            bystander = Node(scratch / f"bystander-{number}", place.given)
            assert bystander.call("fetch")["reason"] is None
            assert bystander.call("state")["instance"] in (old, new)
            assert bystander.call("forget")["reason"] is None
            done = maker.call("publish", keep=2)
            assert done["reason"] is None, (moment, done)

            version = done["version"]
            moment = chance.uniform(0, longest["fetch"])
            hit["fetch"] += killed(other, "fetch", moment, version=version)
            found = other.call("state")
            assert found["instance"] in (old, new), (moment, found)
            done = other.call("fetch", version=version)
            assert done["reason"] is None, (moment, done)
            found = other.call("state")
            assert (found["instance"], found["folders"]) == (new, [new])
            old = new
        finished = sorted(path.parent.name for path in (place.folder / "reference").glob("0*/golden.json"))
        folders = sorted(path.name for path in (place.folder / "reference").glob("0*"))
        assert len(finished) == 2, "no more than are to be kept"
        assert folders == finished, "and nothing of those that went"
        assert sum(hit.values()) >= KILLS // 4, f"the moments are those of calls under way: {hit}"


def test_a_fetch_that_was_killed_after_its_commit_is_finished_by_the_next(scratch: Path) -> None:
    with folder(scratch) as place:
        maker, other = Node(scratch / "maker", place.given), Node(scratch / "other", place.given)
        maker.call("make", mib=MIB)
        version = maker.call("publish")["version"]
        assert other.call("fetch")["reason"] is None
        found = other.call("state")
        home = scratch / "other" / "golden" / "reference"
        for name in (".incoming", "gpuckpt-golden-reference-00000000"):
            (home / name / "images").mkdir(parents=True)
            os.utime(home / name, (1, 1))
        # one was killed while it removed what was replaced, and one is being made
        (home / ".removed-gpuckpt-golden-reference-22222222" / "images").mkdir(parents=True)
        (home / "gpuckpt-golden-reference-11111111").mkdir()
        assert other.call("fetch", version=version)["changed"] is False
        assert other.call("state")["folders"] == sorted([found["instance"], "gpuckpt-golden-reference-11111111"])


def small(path: Path, mib: int) -> list[str]:
    """Words before a command for which a folder is a file system of so many MiB."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs -o mode=0700,size={mib}m small "{path}" && exec "$@"',
        "sh",
    ]


def test_a_full_store_is_told_before_anything_is_moved(scratch: Path) -> None:
    with folder(scratch) as place:
        maker = Node(scratch / "maker", place.given)
        maker.call("make", mib=MIB)
        maker.call("publish")
        other = Node(scratch / "other", place.given, small(scratch / "other" / "golden", MIB - 2))
        full = other.call("fetch")
        assert full["reason"] == "store_full", full
        assert "MiB left" in full["msg"]


def test_a_full_remote_is_told(scratch: Path) -> None:
    with folder(scratch) as place:
        remote = Path(place.given["rclone"])
        maker = Node(scratch / "maker", place.given)
        maker.call("make", mib=MIB)
        cramped = Node(scratch / "maker", place.given, small(remote, MIB - 3))
        full = cramped.call("publish")
        assert full["reason"] == "store_full", full
        assert full["msg"].count("\n") == 0
        assert maker.call("publish")["reason"] is None, "with room it works"


def test_the_network_goes_and_comes_back(scratch: Path) -> None:
    rclone = needs("rclone", "rclone")
    with sftp(scratch) as place:
        maker, other = Node(scratch / "maker", place.given), Node(scratch / "other", place.given)
        maker.call("make", mib=24)
        with maker.begin("publish") as process:
            while len(list((scratch / "remote").glob("golden/reference/*/part-*"))) < 8:
                time.sleep(0.02)
            os.kill(place.server, signal.SIGKILL)
            said, errors = process.communicate(timeout=120)
        assert '"reason": "remote_unreachable"' in said, said + errors
        assert other.call("fetch")["reason"] == "remote_unreachable"
        words = ["serve", "sftp", scratch / "remote", f"--addr=127.0.0.1:{place.port}", *place.arguments]
        with running([rclone, "--config=", *words], place.port, scratch / "again.log", HOME=str(scratch)):
            done = maker.call("publish")
            assert done["reason"] is None, done
            assert done["moved_bytes"] < 24 << 20, "what had arrived stays"
            assert other.call("fetch")["reason"] is None
            assert other.call("state")["instance"] == maker.call("state")["instance"]


def test_both_at_once_on_one_node(scratch: Path) -> None:
    with folder(scratch) as place:
        maker = Node(scratch / "maker", place.given)
        maker.call("make", mib=1)
        maker.call("publish")
        with (scratch / "maker/run/copies/reference.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            busy = maker.call("publish")
        assert busy["reason"] == "node_taken", busy
        assert maker.call("publish")["reason"] is None


def test_a_checkpoint_that_is_made_anew_meanwhile_takes_nothing_away(scratch: Path) -> None:
    with folder(scratch) as place:
        maker, other = Node(scratch / "maker", place.given), Node(scratch / "other", place.given)
        first = maker.call("make", mib=24)["instance"]
        with maker.begin("publish", transfers=1) as process:
            while not list((scratch / "remote").glob("reference/*/part-*")):
                time.sleep(0.02)
            second = maker.call("make", mib=2, seed=7)["instance"]
            said, errors = process.communicate(timeout=120)
        assert '"reason": null' in said, said + errors
        assert other.call("fetch")["reason"] is None
        assert other.call("state")["instance"] == first
        assert maker.call("publish")["changed"]
        assert maker.call("state")["instance"] == second


def test_credentials_that_only_read_are_enough_to_fetch(scratch: Path) -> None:
    rclone = needs("rclone", "rclone")
    with sftp(scratch) as place:
        maker, other = Node(scratch / "maker", place.given), Node(scratch / "other", place.given)
        maker.call("make", mib=1)
        maker.call("publish")
    words = ["serve", "sftp", scratch / "remote", f"--addr=127.0.0.1:{place.port}", "--read-only", *place.arguments]
    with running([rclone, "--config=", *words], place.port, scratch / "again.log", HOME=str(scratch)):
        fetched = other.call("fetch")
        assert fetched["reason"] is None, fetched
        assert "it cannot be noted there that this node uses" in fetched["notes"][0]
        assert other.call("state")["instance"] is not None
