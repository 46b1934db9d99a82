# SPDX-License-Identifier: GPL-3.0-or-later
"""CRIU's own tests: unit tests, compel, and the part of ZDTM that can pass on a machine without CAP_SYS_RESOURCE.

By default ZDTM runs with mapping and threads on, as that is what our patches change most. GPUCKPT_NATIVE_FULL=1
(`make -C native check-full`) adds stock, all switches off, each feature alone, iterated checkpoints, and the flavour
with namespaces.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from criu_harness import Build

FULL = os.environ.get("GPUCKPT_NATIVE_FULL") == "1"
CAP_SYS_RESOURCE = 24
# These pass with stock CRIU 4.2.1 in both flavours.
ZDTM = [
    "busyloop00",
    "cow00",
    "cow01",
    "cwd00",
    "env00",
    "epoll",
    "eventfs00",
    "file_shared",
    "futex",
    "maps00",
    "maps02",
    "maps04",
    "maps05",
    "mem-touch",
    "mprotect00",
    "pipe00",
    "pipe01",
    "pthread00",
    "pthread01",
    "sigaltstack",
    "sigpending",
    "socket-tcp-local",
    "socket_listen",
    "timers",
    "unlink_fstat00",
    "vdso00",
    "write_read00",
    "zombie00",
]
# ZDTM skips these on kernels built without CONFIG_MEM_SOFT_DIRTY.
NEEDS_DIRTY_TRACKING = {"mem-touch"}
# Small memory shall be mapped too, for that is all these tests have.
EACH_PAGE = {"CRIU_MAPPED_RESTORE": "1", "CRIU_MAPPED_MIN_KB": "4"}


@dataclass(frozen=True)
class Run:
    """One pass through the ZDTM list."""

    name: str
    variant: str
    flavour: str
    environment: dict[str, str]
    arguments: tuple[str, ...] = ()


def runs() -> list[Run]:
    features = {
        "off": {},
        "mapped": EACH_PAGE,
        "threads": {"CRIU_RESTORE_THREADS": "8"},
        "mapped-threads": {**EACH_PAGE, "CRIU_RESTORE_THREADS": "8"},
    }
    if not FULL:
        return [Run("mapped-threads-h", "patched", "h", features["mapped-threads"])]
    every = [Run(f"stock-{flavour}", "stock", flavour, {}) for flavour in ("h", "ns")]
    for name, environment in features.items():
        every += [Run(f"{name}-{flavour}", "patched", flavour, environment) for flavour in ("h", "ns")]
    # Each iteration checkpoints what the one before restored: a re-dump of mapped memory.
    every += [
        Run(f"mapped-iters-{flavour}", "patched", flavour, EACH_PAGE, ("--iters", "3")) for flavour in ("h", "ns")
    ]
    return every


@pytest.fixture(scope="session")
def distribution_environment() -> dict[str, str]:
    """ZDTM needs the distribution's python3, which has protobuf, before any other."""
    return {**os.environ, "PATH": f"/usr/bin:{os.environ['PATH']}"}


@pytest.fixture(scope="session")
def zdtm(stock_build: Build, patched_build: Build, distribution_environment: dict[str, str]) -> dict[str, Build]:
    """Both builds with the ZDTM programs of the list built in the patched tree, which runs both."""
    tree = patched_build.tree
    quiet = {"env": distribution_environment, "check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(["make", "-C", tree, "-j2", "lib", "crit"], **quiet)
    subprocess.run(["make", "-C", tree / "test/zdtm/lib"], **quiet)
    subprocess.run(["make", "-C", tree / "test/zdtm/static", "-j2", *ZDTM], **quiet)
    run_as_root_where_rlimits_are_locked(tree / "test/zdtm.py")
    return {"stock": stock_build, "patched": patched_build}


def run_as_root_where_rlimits_are_locked(script: Path) -> None:
    """Without CAP_SYS_RESOURCE CRIU reads the limits of processes of its own uid only, so the tests must be root's."""
    capabilities = int(re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.M)[1], 16)
    if not capabilities >> CAP_SYS_RESOURCE & 1:
        text = script.read_text()
        script.write_text(re.sub(r"(env\['ZDTM_[UG]ID'\] = )\"\d+\"", r'\1"0"', text))


def test_unit_tests(patched_build, distribution_environment):
    subprocess.run(["make", "-C", patched_build.tree, "unittest"], env=distribution_environment, check=True)


def test_compel(patched_build, distribution_environment):
    subprocess.run(["make", "-C", patched_build.tree / "compel/test"], env=distribution_environment, check=True)


@pytest.mark.parametrize("run", runs(), ids=lambda run: run.name)
def test_zdtm(run: Run, zdtm: dict[str, Build], programs, distribution_environment):
    pattern = "zdtm/static/(" + "|".join(map(re.escape, ZDTM)) + ")$"
    command = ["./zdtm.py", "run", "-T", pattern, "-f", run.flavour, "-p", "2", "--keep-going", "--ignore-taint"]
    done = subprocess.run(
        [*command, "--criu-bin", zdtm[run.variant].binary, *run.arguments],
        cwd=zdtm["patched"].tree / "test",
        env={**distribution_environment, **run.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = set(re.findall(r"Test zdtm/static/(\S+) PASS", done.stdout))
    assert done.returncode == 0, done.stdout[-5000:]
    assert set(ZDTM) - passed <= NEEDS_DIRTY_TRACKING
