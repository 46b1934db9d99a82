# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs playbooks as a user would, and reads what they leave behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ANSIBLE_PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
STORE = "/mnt/checkpoint-ram"
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Played:
    """Outcome of a play: exit status, everything it said, and its recap by host."""

    status: int
    output: str

    @property
    def changed(self) -> int:
        """Tasks that changed something, over all hosts."""
        return sum(int(match[3]) for match in RECAP.finditer(self.output))


def play(playbook: str, *arguments: str, timeout_s: int = 400, check: bool = True, **variables: Any) -> Played:
    """Run a playbook on the default inventory with extra variables.

    :raises AssertionError: with the end of its output, when it fails and ``check`` is set
    """
    command = [str(ANSIBLE_PLAYBOOK), playbook, *arguments, "--extra-vars", json.dumps(variables)]
    environment = {**os.environ, "ANSIBLE_FORCE_COLOR": "0"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert not check or done.returncode == 0, f"{playbook} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return Played(done.returncode, done.stdout)


def records(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of a run."""
    return [json.loads(line) for line in (run_dir / "records.jsonl").read_text(encoding="utf-8").splitlines()]


def node_state() -> dict[str, Any]:
    """Return what provisioning may not leave behind after a rollback: mounts, containers, criu, configuration."""
    return {
        "mounts": sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "containers": run("podman", "ps", "--all", "--format", "{{.Names}}").split(),
        "criu": os.path.realpath("/usr/local/sbin/criu") if os.path.lexists("/usr/local/sbin/criu") else None,
        "fstab": Path("/etc/fstab").read_text() if Path("/etc/fstab").exists() else None,
        "configuration": sorted(
            str(path) for folder in ("/etc/criu", "/etc/gpuckpt", "/etc/containers") for path in Path(folder).rglob("*")
        ),
    }


def run(*command: str) -> str:
    """Return the output of a command; empty where the command does not exist."""
    try:
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""
