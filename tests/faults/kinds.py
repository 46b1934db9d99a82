# SPDX-License-Identifier: GPL-3.0-or-later
"""The faults: each is a function that does one thing to a world at a random moment or place, and judges what became of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import node
from world import World, ok, wait_until

Trial = Callable[[World], None]
# how long a victim takes part in an operation of the small server, from its first sight (s): moments are drawn from it
SPANS = {"module": 1.0, "server": 0.6, "podman": 0.4, "conmon": 0.3, "runc": 0.2, "criu": 0.12}
STOPPED_LIMIT_S = 10
SPARE_BYTES = 8 << 20
DAMAGED = ("images_damaged", "images_missing", "images_truncated")


def victims(world: World, victim: str, running: Any) -> list[int]:
    """Processes of a kind, now."""
    if victim == "module":
        return [running.process.pid]
    if victim == "server":
        return list(node.servers(world.port))
    return list(node.named(victim))


def strike_at_random(
    world: World, operation: str, victim: str, signal_number: int, **options: Any
) -> dict[str, Any] | None:
    """Runs an operation and sends a signal to a victim at a random moment; the result of the operation."""
    running = world.begin(operation, **options)
    seen: float | None = None
    delay = world.rng.uniform(0.0, SPANS[victim])

    def reach() -> bool:
        nonlocal seen
        there = victims(world, victim, running)
        if there and seen is None:
            seen = time.monotonic()
        return seen is not None and time.monotonic() - seen >= delay and bool(node.strike(there, signal_number))

    wait_until(lambda: running.process.poll() is not None or reach(), 60)
    # an operation that ended before the moment was not touched: the trial says so and is not counted
    world.outcome.struck = running.process.poll() is None or running.process.returncode == -signal.SIGKILL
    return world.finish(running, operation)


def kill(operation: str, victim: str) -> Trial:
    """SIGKILL to a process that takes part in an operation."""

    def trial(world: World) -> None:
        world.prepare(serving=operation == "checkpoint")
        result = strike_at_random(world, operation, victim, signal.SIGKILL)
        world.audit_result(operation, result, killed_later=victim == "server")
        world.audit_stop()
        world.audit_checkpoint()

    return trial


def stop_criu(operation: str) -> Trial:
    """CRIU is stopped and never goes on: the operation ends within its limit."""

    def trial(world: World) -> None:
        world.prepare(serving=operation == "checkpoint")
        result = strike_at_random(world, operation, "criu", signal.SIGSTOP, deadline_s=STOPPED_LIMIT_S)
        world.audit_result(operation, result)
        world.audit_stop()
        world.audit_checkpoint()

    return trial


def damage(choose: Callable[[World], Path], change: Callable[[World, Path], None]) -> Trial:
    """An image of the checkpoint is damaged: a restore must refuse it for that reason, and leave nothing."""

    def trial(world: World) -> None:
        world.prepare(serving=False, digests="pages")
        image = choose(world)
        change(world, image)
        result = world.perform("restore", verify="pages")
        reason = (result or {}).get("reason")
        world.outcome.said = f"{image.name}: {reason}"
        if ok(result):
            world.outcome.wrong.append(f"{image.name} was damaged and restored all the same")
        elif reason not in DAMAGED:
            world.outcome.wrong.append(f"{image.name} was damaged, and the reason is {reason}")
        else:
            world.ended("a refused restore")

    return trial


def images(world: World, pages: bool) -> list[Path]:
    """Images that hold pages, or all others."""
    found = sorted((world.folder / "images").glob("*.img"))
    return [image for image in found if image.name.startswith("pages-") == pages and image.stat().st_size]


def some_metadata(world: World) -> Path:
    """An image of metadata."""
    return world.rng.choice(images(world, pages=False))


def some_pages(world: World) -> Path:
    """The largest image of pages."""
    return max(images(world, pages=True), key=lambda image: image.stat().st_size)


def flip(world: World, image: Path) -> None:
    """Turns one bit over."""
    place = world.rng.randrange(image.stat().st_size)
    with image.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << world.rng.randrange(8))]))


def truncate(world: World, image: Path) -> None:
    """Cuts the end off."""
    os.truncate(image, world.rng.randrange(image.stat().st_size))


def remove(_: World, image: Path) -> None:
    """Takes the file away."""
    image.unlink()


def exchange(world: World, image: Path) -> None:
    """Puts another image's content there."""
    others = [other for other in images(world, pages=False) if other.read_bytes() != image.read_bytes()]
    shutil.copyfile(world.rng.choice(others), image)


def manifest(world: World) -> Path:
    """checkpoint.json."""
    return world.folder / "checkpoint.json"


def full_store(world: World) -> None:
    """A dump over a good checkpoint meets a full store."""
    world.prepare(serving=True)
    filler = node.STORE / "filler"
    free = shutil.disk_usage(node.STORE).free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - world.rng.randrange(SPARE_BYTES))
    try:
        result = world.perform("checkpoint")
        world.audit_result("checkpoint", result)
        if ok(result):
            world.outcome.wrong.append("a checkpoint of 16 MiB says ok on a store with less")
    finally:
        filler.unlink()
    world.audit_stop()
    world.audit_checkpoint()


TRACE = """
import ctypes, sys, time
PTRACE_SEIZE = 0x4206
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, None):
    sys.exit(1)
print("traced", flush=True)
time.sleep(300)
"""


def traced(world: World) -> None:
    """A debugger holds the server: the dump is refused or fails, and the good checkpoint stays."""
    world.prepare(serving=True)
    pid = next(iter(node.servers(world.port)))
    tracer = subprocess.Popen(["/usr/bin/python3", "-c", TRACE, str(pid)], stdout=subprocess.PIPE, text=True)
    try:
        assert tracer.stdout is not None
        if tracer.stdout.readline().strip() != "traced":
            raise RuntimeError("the server cannot be traced here")
        result = world.perform("checkpoint")
        world.audit_result("checkpoint", result)
        if ok(result):
            world.outcome.wrong.append("a server under a debugger was checkpointed")
        elif world.memory() != world.digest:
            world.outcome.lost.append("the server does not serve any more")
    finally:
        tracer.kill()
        tracer.wait()
    world.audit_stop()
    world.audit_checkpoint()


def generations(world: World) -> None:
    """Three checkpoints in place, each of the server that the one before brought back."""
    world.prepare(serving=True)
    for generation in (2, 3):
        if not ok(result := world.perform("checkpoint")):
            world.outcome.lost.append(f"generation {generation} is not made: {(result or {}).get('msg')}")
        result = world.perform("restore")
        world.audit_result("restore", result)
        if not ok(result):
            world.outcome.lost.append(f"generation {generation} is not restored: {(result or {}).get('msg')}")


def onto_a_serving_server(world: World) -> None:
    """A restore that nobody asked to replace the running server leaves it alone."""
    world.prepare(serving=True)
    (pid,) = list(node.servers(world.port))[:1]
    result = world.perform("restore")
    if ok(result) or pid not in node.servers(world.port):
        world.outcome.wrong.append("a restore has replaced a serving server")


def two_at_once(world: World) -> None:
    """Two restores of one checkpoint begin together: not both say ok."""
    world.prepare(serving=False)
    both = [world.begin("restore"), world.begin("restore")]
    results = [world.finish(running, "restore") for running in both]
    if sum(ok(result) for result in results) != 1:
        world.outcome.wrong.append(f"{sum(ok(result) for result in results)} of two restores say ok")
    if world.memory() != world.digest:
        world.outcome.lost.append("neither serves")


def all_kinds() -> Iterator[tuple[str, str, str, Trial]]:
    """Name, runtime, build, and trial of each kind."""
    helpers = {
        "process": ("module", "criu", "server"),
        "podman": ("module", "podman", "conmon", "runc", "criu", "server"),
    }
    for runtime, names in helpers.items():
        for operation in ("checkpoint", "restore"):
            for victim in names:
                # a restored process has no server before CRIU is done, and a killed server ends any dump: both builds alike
                for build in ("stock", "patched") if victim == "criu" else ("patched",):
                    yield f"kill-{victim}-{operation}-{runtime}-{build}", runtime, build, kill(operation, victim)
            yield f"stop-criu-{operation}-{runtime}", runtime, "patched", stop_criu(operation)
        for change in (flip, truncate, remove, exchange):
            yield f"damage-metadata-{change.__name__}-{runtime}", runtime, "patched", damage(some_metadata, change)
        for change in (flip, truncate, remove):
            yield f"damage-pages-{change.__name__}-{runtime}", runtime, "patched", damage(some_pages, change)
        for change in (flip, truncate):
            yield f"damage-manifest-{change.__name__}-{runtime}", runtime, "patched", damage(manifest, change)
        for build in ("stock", "patched"):
            yield f"generations-{runtime}-{build}", runtime, build, generations
        yield f"full-store-{runtime}", runtime, "patched", full_store
        yield f"traced-{runtime}", runtime, "patched", traced
        yield f"serving-{runtime}", runtime, "patched", onto_a_serving_server
        yield f"two-at-once-{runtime}", runtime, "patched", two_at_once
