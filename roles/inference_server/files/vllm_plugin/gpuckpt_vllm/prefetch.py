#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring staged weights to the GPU while the server that needs them is being restored: `prefetch.py WEIGHTS_FILE`.

    prefetch.py [--linger S] WEIGHTS_FILE
    prefetch.py --standby [--gpu UUID]      the file's name comes on standard input, later

A restore leaves the bus idle: CRIU rebuilds processes, then the driver rebuilds a context. Meanwhile this program makes a
context of its own, and copies the weights into memory of its own. It hands that memory to the engine when it wakes, which
maps it where its weights were, and copies nothing. Start it together with the restore. Without it, or if it fails, the
engine reads the file itself.

Made during a restore, a context takes 0.26 to 0.30 s and lengthens the driver's part of it by 0.14 s. So it was in three
restores on an H100 (reports/published/h100-native). With --standby it is made beforehand, on the GPU that --gpu names or
on every one, and takes 0.6 GiB there meanwhile.

It stays until standard input ends, or for --linger seconds after the handover. The end of a context keeps the driver busy,
which the server's first tokens would feel. One line each on standard output: `standby`, `ready`, then `taken`, with moments
on the monotonic clock in seconds, and sizes in bytes. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from contextlib import suppress
from pathlib import Path

# The package next to it, whose other half belongs to vLLM.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpuckpt_vllm import handover
from gpuckpt_vllm.driver import driver
from gpuckpt_vllm.staging import Layout, StagedWeights

PATIENCE_S = 120.0  # longest wait for an engine that wants the memory


def find_gpu(uuid: str) -> int:
    """The number of a GPU in this process. Raises RuntimeError when it is not there."""
    for device in range(driver().device_count()):
        if driver().uuid(device) == uuid:
            return device
    raise RuntimeError(f"the weights are of the GPU {uuid}, which is not among those of this node")


def see_only(uuid: str) -> None:
    """Hides all other GPUs from this process: the driver initialises every one that it sees. Call it before the driver.

    :param uuid: 32 hexadecimal digits
    """
    parts = [uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:]]
    os.environ["CUDA_VISIBLE_DEVICES"] = f"GPU-{'-'.join(parts)}"


def bring(weights: Path, layout: Layout, device: int) -> list[int]:
    """Copies the file into fresh memory of the GPU; returns a descriptor for each allocation."""
    pointer = driver().reserve(layout.total)
    pointers, descriptors = [], []
    for size in layout.sizes:
        handle = driver().create(size, device)
        driver().map(pointer, size, handle, device)
        descriptors.append(driver().export(handle))
        pointers.append(pointer)
        pointer += size
    StagedWeights(weights, layout, pointers).read()
    return descriptors


def say(word: str, **values: float) -> None:
    """One line on standard output, `word name=value …`; nobody may be reading any more."""
    with suppress(BrokenPipeError):
        print(word, *(f"{name}={value}" for name, value in values.items()), flush=True)


def stay(linger_s: float | None) -> None:
    """Until standard input ends, or for some seconds."""
    if linger_s is None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
    else:
        select.select([], [], [], linger_s)


def stand_by() -> str:
    """Makes a context on every GPU, then waits for a name on standard input; empty when that ends."""
    driver().init()
    for device in range(driver().device_count()):
        driver().retain_context(device)
    say("standby")
    return sys.stdin.readline().rstrip("\n")


def main() -> int:
    """Prefetches and hands over; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--linger", type=float, metavar="S", help="stay S seconds after the handover, not until input ends"
    )
    parser.add_argument(
        "--standby", action="store_true", help="make contexts, then read the file's name from standard input"
    )
    parser.add_argument("--gpu", metavar="UUID", help="with --standby: make a context there alone")
    parser.add_argument("weights", nargs="?")
    arguments = parser.parse_args()
    if bool(arguments.weights) == arguments.standby:
        parser.error("give either a weights file or --standby")
    weights = Path(arguments.weights or "the weights")
    began = time.monotonic()
    try:
        if arguments.gpu:
            see_only(arguments.gpu)
        if arguments.standby:
            name = stand_by()
            if not name:
                return 0
            weights, began = Path(name), time.monotonic()
        layout = Layout.load(weights)
        if not arguments.standby:
            see_only(layout.gpu)
        with handover.listen(weights) as listening:
            try:
                driver().init()
                device = find_gpu(layout.gpu)
                driver().retain_context(device)
                context = time.monotonic()
                descriptors = bring(weights, layout, device)
                say("ready", start=began, context=context, end=time.monotonic(), bytes=layout.total)
                handover.give(listening, descriptors, PATIENCE_S)
            finally:
                handover.address(weights).unlink(missing_ok=True)
    except TimeoutError:
        print(f"prefetch: nobody asked for {weights} within {PATIENCE_S:g} s", file=sys.stderr)
        return 1
    except (OSError, ValueError, RuntimeError) as error:
        print(f"prefetch: {error}; the engine reads {weights} itself", file=sys.stderr)
        return 1
    say("taken", at=time.monotonic())
    stay(arguments.linger)
    return 0


if __name__ == "__main__":
    sys.exit(main())
