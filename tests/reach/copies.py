#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast golden checkpoints are published and fetched, next to plain copies, in turn; and what chunks would save.

    copies.py speed SCRATCH [--rounds N] [--mib N] [--sftp]     SCRATCH: a new folder on the disk that is measured
    copies.py chunks SCRATCH CHECKPOINT CHECKPOINT              two checkpoints of one server

Prints a line of JSON for each sample. Of `speed`: bytes of data and seconds, until the disk has them (`sync -f`). `cp` copies
the same files, and `sha256` only takes their digests, on all processors. Both are the floor of a copy with digests. With --sftp there is a server of rclone on loopback, and `rclone` copies the same files through it. The files
are in the page cache before. Of `chunks`: what casync stores for each checkpoint, and what a plain copy has.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration" / "copies"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "module_utils"))

import places
from ckpt.copies import parts

NAME = "reference"


def timed(work: Callable[[], object], folder: Path) -> float:
    """Seconds until the work is done, and what it wrote is on the disk."""
    began = time.monotonic()
    work()
    subprocess.run(["sync", "-f", folder], check=True)
    return time.monotonic() - began


def run(*words: object) -> None:
    """Runs a command to its end."""
    subprocess.run([str(word) for word in words], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def emptied(folder: Path) -> Path:
    """A new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    return folder


def take_digests(source: Path, part_bytes: int) -> None:
    """Takes the sha256 of all data of a folder's files, part by part, on all processors."""
    with ExitStack() as stack:
        opened, files = {}, []
        for path in filter(Path.is_file, source.rglob("*")):
            descriptor = stack.enter_context(path.open("rb")).fileno()
            opened[str(path)], size = descriptor, path.stat().st_size
            files.append(parts.File(str(path), size, parts.data_of(descriptor, size)))
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda pieces: parts.digest_of_pieces(pieces, opened), parts.cut(files, part_bytes)))


def speed(options: argparse.Namespace) -> None:
    """Measures ways to copy, in turn."""
    scratch: Path = options.scratch
    with ExitStack() as stack:
        place = stack.enter_context((places.sftp if options.sftp else places.folder)(scratch))
        given = {**place.given, "verify": "metadata", "part_mib": options.part_mib, "transfers": options.transfers}
        maker = places.Node(scratch / "maker", given)
        made = maker.call("make", mib=options.mib)
        source = scratch / "maker" / "golden" / NAME / made["instance"]
        run("sh", "-c", f"sync; cat {source}/images/* >/dev/null")

        def plain() -> None:
            if options.sftp:
                conf = place.given["credentials"]
                run("rclone", f"--config={conf}", "copy", "--transfers=4", "--ignore-checksum", source, "there:plain")
            else:
                run("cp", "--recursive", "--sparse=auto", source, scratch / "plain")

        def publish() -> None:
            done = maker.call("publish")
            assert done["reason"] is None, done

        def fetch() -> None:
            done = places.Node(scratch / "other", given).call("fetch")
            assert done["reason"] is None, done

        def digest() -> None:
            take_digests(source, options.part_mib << 20)

        ways = {"rclone" if options.sftp else "cp": plain, "sha256": digest, "publish": publish, "fetch": fetch}
        data = options.mib << 20
        # the first round warms up
        for number in range(options.rounds + 1):
            for folder in (scratch / "other", scratch / "plain"):
                shutil.rmtree(folder, ignore_errors=True)
            # through the server, which remembers what it has
            for folder in ("there:plain", f"there:golden/{NAME}") if options.sftp else (scratch / "remote" / NAME,):
                subprocess.run(
                    ["rclone", f"--config={place.given.get('credentials', '')}", "purge", folder],
                    stderr=subprocess.DEVNULL,
                )
            run("sync", "-f", scratch)
            for way, work in ways.items():
                seconds = timed(work, scratch)
                if number:
                    line = {"way": way, "round": number, "bytes": data, "seconds": round(seconds, 3)}
                    print(json.dumps({**line, "through": "sftp" if options.sftp else "folder"}), flush=True)


def chunks(options: argparse.Namespace) -> None:
    """Measures what a store of chunks takes for two checkpoints."""
    scratch = options.scratch
    store = emptied(scratch / "store.castr")
    held = 0
    for number, checkpoint in enumerate(options.checkpoints, 1):
        files = [path for path in checkpoint.rglob("*") if path.is_file()]
        size = sum(path.stat().st_blocks * 512 for path in files)
        run("sh", "-c", f"sync; cat {checkpoint}/images/* >/dev/null")
        index = scratch / f"{number}.caidx"
        seconds = timed(
            lambda index=index, checkpoint=checkpoint: run(
                "casync", "make", "--with=sec-time", f"--store={store}", index, checkpoint
            ),
            scratch,
        )
        after = sum(path.stat().st_size for path in store.rglob("*.cacnk"))
        line = {
            "way": "casync make",
            "checkpoint": number,
            "bytes": size,
            "stored_bytes": after - held,
            "seconds": round(seconds, 3),
        }
        print(json.dumps(line), flush=True)
        held = after
        target = emptied(scratch / "target")
        words = ["casync", "extract", f"--store={store}"]
        if number > 1:
            words.append(f"--seed={options.checkpoints[0]}")
        seconds = timed(lambda index=index, words=words, target=target: run(*words, index, target / "out"), scratch)
        print(
            json.dumps({"way": "casync extract", "checkpoint": number, "bytes": size, "seconds": round(seconds, 3)}),
            flush=True,
        )
        target = emptied(scratch / "target")
        seconds = timed(
            lambda checkpoint=checkpoint, target=target: run("cp", "--recursive", "--sparse=auto", checkpoint, target),
            scratch,
        )
        print(json.dumps({"way": "cp", "checkpoint": number, "bytes": size, "seconds": round(seconds, 3)}), flush=True)


def main() -> int:
    """Measures; returns the exit status."""
    parser = argparse.ArgumentParser(description="How fast golden checkpoints are copied.")
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("speed")
    one.add_argument("scratch", type=Path)
    one.add_argument("--rounds", type=int, default=5, metavar="N")
    one.add_argument("--mib", type=int, default=1024, metavar="N", help="data of the checkpoint")
    one.add_argument("--part-mib", type=int, default=128, metavar="N")
    one.add_argument("--transfers", type=int, default=0, metavar="N")
    one.add_argument("--sftp", action="store_true", help="through a server on loopback")
    one.set_defaults(measure=speed)
    other = verbs.add_parser("chunks")
    other.add_argument("scratch", type=Path)
    other.add_argument("checkpoints", type=Path, nargs=2)
    other.set_defaults(measure=chunks)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("run it as root, whose checkpoints are")
    emptied(options.scratch)
    options.measure(options)
    shutil.rmtree(options.scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
