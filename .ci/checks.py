#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the checks, in parallel where they do not share a resource, and sums them up.

    checks.py [--list] [--long] [NAME ...]      NAME: a check, or a group (lint, unit, native, integration, molecule)

Each check writes build/checks/<name>.log; the end of it is shown when it fails. The exit status is 1 if one failed.
A check may exit 77 to say that it cannot run on this machine: its last line says why. The summary tells why single tests
were skipped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from select import poll

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
PYTHON = str(BIN / "python")
LOGS = ROOT / "build" / "checks"
# A provisioned node of own_node.sh, which others are copies of, and where such a node has its store
NODE = ROOT / "build" / "provisioned-node"
KEPT = str(NODE.relative_to(ROOT))
OWN_NODE = ("tests/integration/own_node.sh", "build/node")
STORE = "/mnt/checkpoint-ram"
SKIPPED = 77
TAIL_LINES = 60
# What the scenarios of a role must have to themselves where they run on this machine; all others have a node of their own.
ON_THIS_MACHINE = {
    "bundle": frozenset({"bundle"}),  # folders of its own
    "model_cache": frozenset[str](),  # a folder of its own
    "nvidia_driver": frozenset[str](),  # only looks
}
# Those that nothing needs to be provisioned for, and those that ask a package index: they have the network of this machine.
ON_A_BARE_NODE = {"checkpoint_store", "container_runtime", "doctor", "llama_cpp"}
FROM_AN_INDEX = {"container_runtime", "criu", "llama_cpp"}
# What is the same every time; moments drawn at random are tried by hand. CI has each damage with one runtime.
CERTAIN_FAULTS = "^(damage|generations|full|traced|serving|two)"
TELLING_FAULTS = (
    "^(damage-(metadata-(flip|exchange)|pages-remove|manifest-flip)-podman"
    "|damage-(metadata-(truncate|remove)|pages-(flip|truncate)|manifest-truncate)-process"
    "|generations-podman-patched|generations-process-stock"
    "|full-store-podman|traced-process|serving-process|two-at-once-podman)$"
)
# No colours in logs. And what a check has compiled is there for the next one, whatever the shell says: a check starts Python
# thousands of times.
SETTINGS = {"NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1", "PY_COLORS": "0", "PYTHONDONTWRITEBYTECODE": ""}


@dataclass(frozen=True)
class Check:
    """One command.

    `uses` names what it must have to itself, `after` the check whose result it takes, if that one runs, too.
    `limit_s` ends it when it hangs.
    """

    name: str
    group: str
    argv: tuple[str, ...]
    uses: frozenset[str] = frozenset()
    cwd: Path = ROOT
    limit_s: int = 1800
    after: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a check; state is ok, failed or skipped."""

    check: Check
    state: str
    seconds: float
    detail: str = ""
    processor_s: float = 0.0  # of the command and of what it waited for
    notes: tuple[str, ...] = ()  # one line for each reason for which single tests were skipped


def tracked(*patterns: str) -> tuple[str, ...]:
    """Returns the files git knows, or would add, that match the patterns."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return tuple(sorted({name for name in listed if (ROOT / name).is_file()}))


def shell_scripts() -> tuple[str, ...]:
    """Returns the shell scripts, those without a suffix told by their first line."""
    bare = [name for name in tracked("*") if "." not in Path(name).name]
    return tracked("*.sh") + tuple(name for name in bare if is_shell(ROOT / name))


def is_shell(path: Path) -> bool:
    """Tells whether a file starts with the first line of a shell script."""
    with path.open("rb") as file:
        return file.readline(64).rstrip() in {b"#!/bin/sh", b"#!/bin/bash", b"#!/usr/bin/env bash"}


def lint_checks() -> list[Check]:
    """Returns the linters, each on the files it understands."""
    c_sources = tracked("native/*.c", "native/*.h", "tests/native/*.c")
    # published reports are as a run wrote them
    pages = tracked("*.md", ":!reports/published")
    sources = (*tracked("*.py", "*.yml", "*.c", "*.h", "*.mk", "*Makefile"), *shell_scripts())
    commands = {
        "ansible": ("ansible-lint", "--strict", "-q", "--nocolor"),
        "yaml": ("yamllint", "--strict", "."),
        "python": ("ruff", "check", "."),
        "format": ("ruff", "format", "--check", "."),
        "types": (".ci/types.sh",),
        "shell": ("shellcheck", *shell_scripts()),
        "native": ("clang-format", "--style=file:native/.clang-format", "--dry-run", "--Werror", *c_sources),
        "modules": (PYTHON, ".ci/validate_modules.py"),
        "readmes": (PYTHON, ".ci/role_readmes.py", "--check"),
        "prose": (PYTHON, ".ci/prose.py", *pages, *sources),
    }
    return [Check(f"lint-{name}", "lint", argv) for name, argv in commands.items()]


def molecule_checks(long: bool) -> list[Check]:
    """Returns one check for each scenario of each role."""
    # the second base leaves out what the tests of plays do for all roles at once
    bases = ("-c", "../../.config/molecule/config.yml") + (() if long else ("-c", "../../.config/molecule/ci.yml"))
    checks = []
    for number, file in enumerate(sorted(ROOT.glob("roles/*/molecule/*/molecule.yml"))):
        scenario, role = file.parent.name, file.parents[2].name
        name = f"molecule-{role}" + ("" if scenario == "default" else f"-{scenario}")
        molecule = ("molecule", *bases, "test", "--scenario-name", scenario)
        # what molecule remembers of a scenario is that of a node, too
        on_node = ("env", f"--chdir=roles/{role}", "MOLECULE_EPHEMERAL_DIRECTORY=/run/gpuckpt-molecule", *molecule)
        prepare = "true" if role in ON_A_BARE_NODE else as_provisioned(18060 + number)
        if role in ON_THIS_MACHINE:
            checks.append(Check(name, "molecule", molecule, uses=ON_THIS_MACHINE[role], cwd=ROOT / "roles" / role))
            continue
        words = (f"{prepare}; {shlex.join(on_node)}", "true") if role in FROM_AN_INDEX else (prepare, *on_node)
        if role in ON_A_BARE_NODE:
            checks.append(Check(name, "molecule", (*OWN_NODE, *words)))
        else:
            checks.append(Check(name, "molecule", on_copy(*words), after="node"))
    return checks


def provision(port: int) -> str:
    """Returns the command for a node that has this machine's network meanwhile, so it needs a port of its own."""
    others = "-e gpuckpt_weights_mib=64 -e gpuckpt_llama_cpp=false -e criu_distro=false"
    return f"ansible-playbook provision.yml -e inference_server_port={port} {others}"


def as_provisioned(port: int) -> str:
    """Returns the command that makes a copy what the provisioned node was, or provisions where that check was not chosen."""
    return f"if [ -d {KEPT} ]; then mount {STORE}; else {provision(port)}; fi"


def on_copy(prepare: str, *command: str) -> tuple[str, ...]:
    """Returns a command on a copy of the provisioned node."""
    return ("env", f"FROM_NODE={KEPT}", *OWN_NODE, prepare, *command)


def integration_checks(long: bool) -> list[Check]:
    """Returns the checks of plays and modules, on nodes of their own. The first one makes the node that most are copies of."""
    marked = "integration" if long else "integration and not long"
    pytest = (PYTHON, "-m", "pytest", "-q", "--durations=15", "-p", "no:xdist", "-m", marked)
    folder = "tests/integration"
    bundled = tuple(f"{folder}/test_{name}.py" for name in ("bundled_podman", "fleet", "fleet_copies"))
    measured = tuple(f"{folder}/test_{name}.py" for name in ("bench", "one_at_a_time", "serve"))
    driver, modules, copies = f"{folder}/test_driver_install.py", f"{folder}/modules", f"{folder}/copies"
    apart = [f"--ignore={path}" for path in (*bundled, *measured, driver, modules, copies)]
    kinds = CERTAIN_FAULTS if long else TELLING_FAULTS
    faults = (
        PYTHON,
        "tests/faults/run.py",
        "--seed=1",
        f"--kinds={kinds}",
        f"--trials={30 if long else 15}",
        "--seconds=150",
    )
    on_modules = ("bash", "-ec", f"{shlex.join([*pytest, modules])}; {shlex.join(faults)}")
    # Its state before it was provisioned is noted for the test of the rollback.
    noted = f"{PYTHON} {folder}/plays.py >{KEPT}.before; {provision(18079)}"
    # It provisions a node anew, with what comes from package indexes: it has this machine's network.
    plays = shlex.join(["env", f"GPUCKPT_NODE_BEFORE={KEPT}.before", *pytest, *apart, folder])
    if_kept = f"if [ -d {KEPT} ]; then {plays}; else {shlex.join([*pytest, *apart, folder])}; fi"
    kills = ("env", f"GPUCKPT_KILLS={24 if long else 8}")
    return [
        # Archives of its builds of CRIU are the controller's: nobody else builds them.
        Check("node", "integration", ("env", f"KEEP_NODE={KEPT}", *OWN_NODE, noted, "true")),
        Check("integration-bench", "integration", on_copy(as_provisioned(18076), *pytest, *measured), after="node"),
        Check("integration-bundle", "integration", (*pytest, *bundled), uses=frozenset({"bundle"}), after="node"),
        Check("integration-modules", "integration", on_copy(as_provisioned(18077), *on_modules), after="node"),
        Check("integration", "integration", on_copy(if_kept, "true"), after="node"),
        Check("integration-copies", "integration", (*kills, *pytest, copies)),
        Check("integration-driver", "integration", (*pytest, driver)),
    ]


def all_checks(long: bool = False) -> list[Check]:
    """Returns every check: those first that others wait for, then those that take longest.

    :param long: with the tests and the combinations that CI leaves out
    """
    pytest = (PYTHON, "-m", "pytest", "-q", "--durations=15")
    native = Check("native", "native", (*pytest, "-p", "no:xdist", "tests/native"), after="node")
    node, *integration = integration_checks(long)
    return [
        node,
        *integration,
        native,
        Check("unit", "unit", (*pytest, "-n", "2", "tests/unit")),
        Check("fuzz", "unit", (PYTHON, "tests/fuzz/run.py", "--seconds", "40")),
        *lint_checks(),
        *molecule_checks(long),
    ]


def run(check: Check) -> Outcome:
    """Runs one check to its end, its output into its log."""
    log = LOGS / f"{check.name}.log"
    started = time.monotonic()
    with log.open("wb") as output:
        # A group of its own: what a hanging check started ends with it.
        process = subprocess.Popen(
            check.argv,
            cwd=check.cwd,
            env=os.environ | SETTINGS | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        hangs = not ends_within(process.pid, check.limit_s)
        if hangs:
            os.killpg(process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if hangs:
            output.write(f"\nchecks: ended after {check.limit_s} s without a result\n".encode())
    seconds, processor_s = time.monotonic() - started, usage.ru_utime + usage.ru_stime
    if process.returncode == SKIPPED:
        return Outcome(check, "skipped", seconds, tail(log, 1).strip(), processor_s)
    state = "ok" if process.returncode == 0 else "failed"
    return Outcome(check, state, seconds, processor_s=processor_s, notes=skipped_tests(log))


def ends_within(pid: int, limit_s: float) -> bool:
    """Tells whether a process ends in time. It is not collected, so that what it used can still be asked for."""
    descriptor = os.pidfd_open(pid)
    poller = poll()
    poller.register(descriptor)
    try:
        return bool(poller.poll(limit_s * 1000))
    finally:
        os.close(descriptor)


def skipped_tests(log: Path) -> tuple[str, ...]:
    """Returns pytest's lines about tests that it skipped (option -ra): how many, where, why."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return tuple(line for line in lines if line.startswith("SKIPPED ["))


def tail(log: Path, lines: int) -> str:
    """Returns the last lines of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-lines:])


def run_all(checks: list[Check], workers: int) -> list[Outcome]:
    """Runs the checks, as many at once as there are workers, never two that use the same thing.

    The first that may start does: the order is that of the checks, so those that take long come first.
    """
    pending, running, outcomes = list(checks), dict[Future[Outcome], Check](), list[Outcome]()
    with ThreadPoolExecutor(workers) as pool:
        while pending or running:
            taken = frozenset[str]().union(*(check.uses for check in running.values()))
            unfinished = {check.name for check in (*pending, *running.values())}
            free = [check for check in pending if not check.uses & taken and check.after not in unfinished]
            if free and len(running) < workers:
                pending.remove(free[0])
                say(free[0].name, "started")
                running[pool.submit(run, free[0])] = free[0]
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                outcomes.append(future.result())
                report(outcomes[-1])
    return outcomes


def say(name: str, what: str) -> None:
    """Prints one line of progress at once."""
    print(f"{time.strftime('%H:%M:%S')}  {name:<32} {what}", flush=True)


def report(outcome: Outcome) -> None:
    """Prints how a check ended, with the end of its log if it failed."""
    took = f"{outcome.seconds:.0f} s, {outcome.processor_s:.0f} s of a processor"
    say(outcome.check.name, f"{outcome.state} after {took} {outcome.detail}".rstrip())
    if outcome.state == "failed":
        log = LOGS / f"{outcome.check.name}.log"
        print(f"--- end of {log.relative_to(ROOT)}\n{tail(log, TAIL_LINES)}\n---", flush=True)


def select(names: list[str], long: bool = False) -> list[Check]:
    """Returns the checks and groups that were named, or all; raises SystemExit for an unknown name."""
    checks = all_checks(long)
    known = {check.name for check in checks} | {check.group for check in checks}
    if unknown := sorted(set(names) - known):
        raise SystemExit(f"checks: no such check: {', '.join(unknown)}. There are: {', '.join(sorted(known))}")
    return [check for check in checks if not names or check.name in names or check.group in names]


def summary(outcomes: list[Outcome], seconds: float) -> None:
    """Prints every check with the time it took and the time of a processor, and the line that counts them."""
    print("\nsummary")
    for outcome in sorted(outcomes, key=lambda o: o.check.name):
        took = f"{outcome.seconds:6.0f} s {outcome.processor_s:6.0f} s"
        print(f"  {outcome.check.name:<32} {outcome.state:<8} {took}  {outcome.detail}".rstrip())
        for note in outcome.notes:
            print(f"      {note}")
    count = {state: sum(o.state == state for o in outcomes) for state in ("ok", "failed", "skipped")}
    print(f"  {seconds:.0f} s in all; logs in {LOGS.relative_to(ROOT)}/")
    print(f"{count['ok']} passed, {count['failed']} failed, {count['skipped']} skipped")


def main() -> int:
    """Runs the checks named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run the checks of this repository.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a check or a group; all when none is named")
    parser.add_argument("--list", action="store_true", help="print the checks and end")
    parser.add_argument("--long", action="store_true", help="with the tests and combinations that CI leaves out")
    parser.add_argument(
        "--workers", type=int, default=3, help="checks at once (3: many wait for others than a processor)"
    )
    options = parser.parse_args()
    if not BIN.is_dir():
        raise SystemExit("checks: no virtual environment: run `make setup-dev` first")
    checks = select(options.names, options.long)
    if options.list:
        print("\n".join(f"{check.group:<12} {check.name}" for check in checks))
        return 0
    LOGS.mkdir(parents=True, exist_ok=True)
    if any(check.after == "node" for check in checks):
        # what an older run has left there may be another revision's
        shutil.rmtree(NODE, ignore_errors=True)
    started = time.monotonic()
    outcomes = run_all(checks, options.workers)
    summary(outcomes, time.monotonic() - started)
    return int(any(outcome.state == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
