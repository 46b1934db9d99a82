# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs playbooks as a user would, and reads what they leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ANSIBLE_PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
STORE = "/mnt/checkpoint-ram"
ROOTFS = "/mnt/gpuckpt-rootfs"
WEIGHTS_MIB = 64
OTHER_IMAGES = ("localhost/gpuckpt-molecule", "<none>")
IMAGE_NAMES = ("podman", "images", "--format", "{{.Repository}}:{{.Tag}}")
# The first container with a network of its own makes podman mount this folder upon itself, for good.
PODMANS_OWN = "/run/netns"
# A play that takes so long hangs, on a busy machine, too.
HANGS_S = 1200
# What makes a node of conftest.py a bare one: podman of a bundle must do without.
PURGE = ("dpkg", "--purge", "iptables", "rclone")
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


def play(playbook: str, *arguments: str, timeout_s: int = HANGS_S, check: bool = True, **variables: Any) -> Played:
    """Runs a playbook on the default inventory with extra variables.

    :raises AssertionError: with the end of its output, when it fails and ``check`` is set
    """
    done = perform([ANSIBLE_PLAYBOOK, playbook, *arguments, "--extra-vars", json.dumps(variables)], timeout_s)
    assert not check or done.status == 0, f"{playbook} ended with {done.status}:\n{done.output[-6000:]}"
    return done


def perform(command: Sequence[object], timeout_s: float = HANGS_S) -> Played:
    """Runs a command in the project's folder; returns how it ended and all that it said."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_FORCE_COLOR": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    return Played(done.returncode, done.stdout)


def minimal_root(folder: Path, packages: str, timeout_s: float = 300) -> Path:
    """Makes a minimal root of this machine's distribution, with further packages, from this machine's own apt sources."""
    suite = next(
        line.partition("=")[2]
        for line in Path("/etc/os-release").read_text().splitlines()
        if line.startswith("VERSION_CODENAME=")
    )
    words = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={packages}",
        suite,
        str(folder),
        *apt_sources(suite),
    ]
    subprocess.run(words, check=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    return folder


def apt_sources(suite: str) -> list[str]:
    """This machine's apt sources of the suite, the distribution's own: what mmdebstrap takes by itself has no universe on Ubuntu."""
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.[ls]*"))]
    named = [re.compile(rf"^[^#\n]*\s{re.escape(word)}(\s|$)", re.MULTILINE) for word in (suite, "main")]
    texts = {str(file): file.read_text(encoding="utf-8") for file in files if file.is_file()}
    return [file for file, text in texts.items() if all(word.search(text) for word in named)]


def records(run_dir: Path) -> list[dict[str, Any]]:
    """Returns the records of a run."""
    return [json.loads(line) for line in (run_dir / "records.jsonl").read_text(encoding="utf-8").splitlines()]


def node_state() -> dict[str, Any]:
    """Returns what provisioning changes and a rollback puts back: mounts, containers, images, files and links."""
    roots = ("/usr/local/sbin", "/etc/criu", "/etc/gpuckpt", "/etc/containers", "/opt/gpuckpt")
    paths = [Path("/etc/fstab"), *(path for root in roots for path in (Path(root), *Path(root).rglob("*")))]
    # podman first: its first call mounts its storage, and that stays
    return {
        "containers": run("podman", "ps", "--all", "--format", "{{.Names}}").split(),
        "mounts": mounts(),
        "images": sorted(name for name in run(*IMAGE_NAMES).split() if not name.startswith(OTHER_IMAGES)),
        "files": {str(path): content(path) for path in paths if os.path.lexists(path)},
    }


def main() -> None:
    """Prints the state of this machine, for a test that runs elsewhere or later."""
    print(json.dumps(node_state()))


def mounts() -> list[str]:
    """Returns the mount points, but for podman's and what other tests have mounted in the folder for temporary files."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted(point for point in points if point != PODMANS_OWN and not point.startswith(tempfile.gettempdir()))


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Returns in words how two states of the node differ."""
    found = []
    for kind in before:
        old, new = before[kind], after[kind]
        if isinstance(old, dict):
            old, new = ([f"{name}: {value}" for name, value in items.items()] for items in (old, new))
        found += [f"{kind}: {item} is gone" for item in old if item not in new]
        found += [f"{kind}: {item} is new" for item in new if item not in old]
    return found


def content(path: Path) -> str:
    """Returns a link's target, a file's digest and mode, or a folder's mode."""
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return f"{path.stat().st_mode:o} {digest}"


def run(*command: str) -> str:
    """Returns the output of a command; empty where the command does not exist."""
    try:
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    main()
