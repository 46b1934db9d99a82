#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzz the parsers of foreign data: `make fuzz SECONDS=600 SEED=7`, or this program for one target.

The kept seeds of a target run first; then inputs are made of them, the same ones for the same seed. A parser may raise
what it documents, and nothing else, within CPU_LIMIT_S and MEMORY_LIMIT_BYTES for each input. What is found is written
to build/fuzz/TARGET; once it is fixed it belongs to tests/fuzz/seeds/TARGET. Ends with 1 if something was found.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import ansible.module_utils

if TYPE_CHECKING:
    from targets import Target

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = ROOT / "build" / "fuzz"
CPU_LIMIT_S = 2.0
MEMORY_LIMIT_BYTES = 1 << 30


class TooSlowError(BaseException):
    """An input took longer than CPU_LIMIT_S; no parser may catch that."""


@dataclass
class Findings:
    """What was found, one for each place in the code; and how many inputs were tried."""

    inputs: int = 0
    by_place: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    def add(self, data: bytes, error: BaseException) -> None:
        """Notes an input; of several with the same error in the same place the shortest."""
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/targets.py" not in frame.filename and "/run.py" not in frame.filename]
        last = (ours or frames)[-1]
        place = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno} ({last.name})"
        text = "".join(traceback.format_exception(error)[-6:])[-3000:]
        if place not in self.by_place or len(data) < len(self.by_place[place][0]):
            self.by_place[place] = data, text


def make_importable() -> None:
    """Lets the project's modules be imported as Ansible does it."""
    if str(ROOT / "module_utils") not in ansible.module_utils.__path__:
        ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
    sys.path[:0] = [str(ROOT / "filter_plugins"), str(Path(__file__).parent)]


@contextmanager
def limited_memory() -> Iterator[None]:
    """Within, this process may take MEMORY_LIMIT_BYTES more than it has; beyond that, MemoryError is raised."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_LIMIT_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(call: Callable[[bytes], object], allowed: tuple[type[Exception], ...], data: bytes) -> BaseException | None:
    """Calls a parser with an input. Returns what it should not have raised, None if all is well."""
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
    try:
        call(data)
    except allowed:
        return None
    except (Exception, TooSlowError) as error:
        return error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def fuzz(target: Target, seed: str, seconds: float, findings: Findings) -> None:
    """Tries the kept seeds of a target, then inputs made of them until the time is over."""
    samples = [path.read_bytes() for path in target.seeds()]
    inputs = iter(samples)
    random = Random(f"{seed}/{target.name}")
    deadline = time.monotonic() + seconds
    while True:
        data = next(inputs, None)
        if data is None:
            if time.monotonic() > deadline:
                return
            data = target.mutate(random, samples)
        findings.inputs += 1
        error = attempt(target.call, target.allowed, data)
        if error is not None:
            findings.add(data, error)


def report(name: str, findings: Findings) -> None:
    """Prints what came of a target, and keeps what was found."""
    print(f"{name:<16} {findings.inputs:>8} inputs  {len(findings.by_place)} findings", flush=True)
    for place, (data, text) in findings.by_place.items():
        path = FINDINGS / name / hashlib.sha256(data).hexdigest()[:16]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"  {place}\n  input of {len(data)} bytes: {path.relative_to(ROOT)}\n{text}", flush=True)


def main() -> int:
    """Runs; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TARGET", help="targets to fuzz; all when none is named")
    parser.add_argument("--seconds", type=float, default=45.0, help="time for all targets together (45)")
    parser.add_argument("--seed", default="0", help="any text; the same one gives the same inputs (0)")
    parser.add_argument("--list", action="store_true", help="print the targets and end")
    options = parser.parse_args()
    make_importable()
    from targets import Folder, all_targets

    signal.signal(signal.SIGPROF, _too_slow)
    # Python warns of odd regular expressions, which are wanted here
    warnings.simplefilter("ignore")
    folder = Folder()
    try:
        targets = all_targets(folder)
        if options.list:
            print("\n".join(targets))
            return 0
        chosen = [targets[name] for name in options.names or targets]
        found = 0
        with limited_memory():
            for target in chosen:
                findings = Findings()
                fuzz(target, options.seed, options.seconds / len(chosen), findings)
                report(target.name, findings)
                found += len(findings.by_place)
    finally:
        folder.remove()
    print(f"{found} findings; seed {options.seed}")
    return int(found > 0)


def _too_slow(*_: object) -> None:
    raise TooSlowError(f"took more than {CPU_LIMIT_S:g} s")


if __name__ == "__main__":
    sys.exit(main())
