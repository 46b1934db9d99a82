# SPDX-License-Identifier: GPL-3.0-or-later
"""The estimate of a checkpoint's size against what real dumps write, fresh and after mapped restores."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.checkpoints import footprint, preflight
from ansible.module_utils.ckpt.criu.choice import Criu
from ansible.module_utils.ckpt.system import procfs
from programs import PATIENCE_S, STOCK, Begin, Program
from support import Call, Result

pytestmark = pytest.mark.integration
MAPPED = {"CRIU_MAPPED_RESTORE": "1", "CRIU_MAPPED_SCOPE": "all"}
STANDALONE = Criu("patched", {**MAPPED, "CRIU_MAPPED_REDUMP": "standalone"})
DELTA = Criu("patched", {**MAPPED, "CRIU_MAPPED_REDUMP": "delta"})
# Each kind of memory and of files that a dump writes, and next to it what it does not. A signal makes it change 8 MiB.
HOLD_ALL_KINDS = """
MIB = 1 << 20
private = mmap.mmap(-1, 40 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
private.write(os.urandom(40 * MIB))
def change(*_):
    private[16 * MIB : 24 * MIB] = os.urandom(8 * MIB)
    open(here + "/changed", "w").close()
signal.signal(signal.SIGUSR1, change)
untouched = mmap.mmap(-1, 64 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
zeros = sum(untouched[at] for at in range(0, 32 * MIB, 4096))
shared = mmap.mmap(-1, 24 * MIB)
shared[: 8 * MIB] = os.urandom(8 * MIB)
memory = os.memfd_create("memory")
os.write(memory, os.urandom(6 * MIB))
mapped_twice = [mmap.mmap(memory, 6 * MIB) for _ in range(2)]
def hold(folder, size):
    file = os.open(folder + "/file", os.O_CREAT | os.O_RDWR)
    os.write(file, os.urandom(size))
    os.unlink(folder + "/file")
    return file
deleted = [hold(folder, 4 * MIB) for folder in sys.argv[2:]]
deleted_and_mapped = mmap.mmap(deleted[0], 4 * MIB)
with open(here + "/named", "wb+") as named:
    named.write(os.urandom(16 * MIB))
    named.flush()
    copied = mmap.mmap(named.fileno(), 16 * MIB, mmap.MAP_PRIVATE)
    copied[: 4 * MIB] = bytes(4 * MIB)
pipe = os.pipe()
fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, MIB)
os.set_blocking(pipe[1], False)
written = os.write(pipe[1], os.urandom(MIB))
child()
"""


def written_bytes(images: Path) -> int:
    """What a dump has written, without what it shares with an older one."""
    return sum(image.stat().st_size for image in images.iterdir() if not image.name.startswith("mapped-base-"))


def change(program: Program) -> None:
    """Lets it write to its memory."""
    changed = program.folder / "changed"
    changed.unlink(missing_ok=True)
    os.kill(program.pid, signal.SIGUSR1)
    deadline = time.monotonic() + PATIENCE_S
    while not changed.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert changed.exists()


def dump_as_estimated(program: Program, images: Path, criu: Criu) -> None:
    """Dumps it, and compares."""
    tasks, redump = procfs.tree(program.pid), footprint.redump_of(criu, str(images))
    estimate = footprint.dump_bytes([task.pid for task in tasks], redump)
    assert preflight.examine(tasks, preflight.Dump(images_as_memory=redump.as_memory)) == []
    assert program.dump(images, criu), program.said
    assert estimate == pytest.approx(written_bytes(images), rel=0.1)


@pytest.mark.parametrize("first", [STOCK, STANDALONE], ids=["stock", "patched"])
def test_an_estimate_holds(begin: Begin, store: Path, first: Criu) -> None:
    """A fresh process, and what patched CRIU has mapped of its images, whichever way it is dumped again."""
    program = begin(HOLD_ALL_KINDS)
    dump_as_estimated(program, store / "fresh", first)
    older = "fresh"
    for again, criu in (("standalone", STANDALONE), ("delta", DELTA), ("delta-of-delta", DELTA)):
        assert program.restore(store / older, STANDALONE), program.said
        change(program)
        dump_as_estimated(program, store / again, criu)
        older = again


def test_stock_and_what_a_mapped_restore_made(begin: Begin, store: Path) -> None:
    """Where the store is noexec the images are mapped through a mount of their own, which only patched CRIU looks past."""
    program = begin(
        "private = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); private.write(os.urandom(1 << 20))"
    )
    assert program.dump(store / "first"), program.said
    assert program.restore(store / "first", STANDALONE), program.said
    found = preflight.examine(procfs.tree(program.pid), preflight.Dump(images_as_memory=False))
    assert {finding.kind.name for finding in found} == {"hidden_images"}
    assert not program.dump(store / "second")
    assert program.serves()
    assert program.dump(store / "third", STANDALONE), program.said


def test_an_estimate_holds_for_a_container(call: Call, podman_server: Result, store: Path) -> None:
    """A container has file systems in memory of its own, which CRIU packs."""
    options = podman_server["server"]
    options["podman_args"].append("--tmpfs=/data")
    fill = (
        f"import os, sys; open('/data/file', 'wb').write(os.urandom({16 << 20})); os.execv(sys.argv[1], sys.argv[1:])"
    )
    options["command"] = ["/usr/bin/python3", "-c", fill, *options["command"]]
    assert call("ckpt_start", **podman_server)["record"]["status"] == "ok"
    inspect = ["podman", "container", "inspect", "--format", "{{.State.Pid}}", options["name"]]
    first = int(subprocess.run(inspect, capture_output=True, text=True, check=True).stdout)
    redump = footprint.redump_of(STOCK, str(store))
    estimate = footprint.dump_bytes([task.pid for task in procfs.tree(first)], redump)
    golden = {"dir": str(store / "golden")}
    result = call("ckpt_checkpoint", **podman_server, criu={"build": "stock"}, checkpoint=golden)
    assert result["record"]["status"] == "ok", result["msg"]
    assert estimate == pytest.approx(written_bytes(store / "golden" / "images"), rel=0.1)
