# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node is: kernel, memory, mounts, cgroups, GPUs. Readers only; nothing here changes a node.

Every reader takes a `Node`, which reads files below a root and runs commands. So tests give it the recorded files and
outputs of other machines.
"""

from __future__ import annotations

import glob
import os
import re
import resource
from collections.abc import Callable, Sequence

from ..system.commands import SYSTEM_PATH, Commands, Result
from ..system.mounts import SELF, Mount, parse
from ..versions import version_in

COMMAND_TIMEOUT_S = 30.0
CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_CHECKPOINT_RESTORE": 40,
}


class Node:
    """Files below `root`, and commands. `run` defaults to really running them."""

    def __init__(self, root: str = "/", run: Callable[[Sequence[str]], Result] | None = None) -> None:
        self.root = root
        self.commands = Commands()
        self._run = run

    def path(self, path: str) -> str:
        """Returns where an absolute path of the node lies."""
        return path if self.root == "/" else os.path.join(self.root, path.lstrip("/"))

    def read(self, path: str) -> str | None:
        """Returns a text file without the white space around it; None if it is missing or cannot be read."""
        try:
            with open(self.path(path), "rb") as source:
                return source.read().decode("utf-8", "replace").strip()
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """Tells whether a path exists, links followed."""
        return os.path.exists(self.path(path))

    def glob(self, pattern: str) -> list[str]:
        """Returns the node's paths that match, sorted."""
        found = sorted(glob.glob(self.path(pattern)))
        return found if self.root == "/" else ["/" + os.path.relpath(name, self.root) for name in found]

    def which(self, program: str) -> str | None:
        """Returns the first program of that name in the PATH that services have."""
        candidates = (os.path.join(folder, program) for folder in SYSTEM_PATH.split(":"))
        return next((name for name in candidates if os.access(self.path(name), os.X_OK)), None)

    def run(self, *argv: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Result:
        """Runs a command to its end; a missing program yields status 127. Raises CkptError when it does not end."""
        return self._run(argv) if self._run else self.commands.run(argv, timeout_s)


def mounts(node: Node) -> list[Mount]:
    """Returns the mounts that this process sees on the node, in the kernel's order."""
    return list(parse(node.read(SELF) or ""))


def mount_at(node: Node, target: str) -> Mount | None:
    """Returns what is mounted on a folder, the uppermost if there are several; None if it is no mount point."""
    return next((mount for mount in reversed(mounts(node)) if mount.point == target), None)


def cgroups(node: Node) -> str:
    """Returns v2, hybrid (v1 controllers, some with v2 next to them), v1 or none."""
    kinds = {mount.fstype for mount in mounts(node) if mount.point.startswith("/sys/fs/cgroup")}
    if "cgroup" in kinds:
        return "hybrid" if "cgroup2" in kinds else "v1"
    return "v2" if "cgroup2" in kinds else "none"


def sysctl(node: Node, name: str) -> int | None:
    """Returns a numeric kernel setting by its dotted name, None where the kernel has none."""
    text = node.read("/proc/sys/" + name.replace(".", "/"))
    match = re.match(r"-?[0-9]{1,19}\b", text or "")
    return int(match[0]) if match else None


def memory_bytes(node: Node) -> dict[str, int]:
    """Returns total and available memory in bytes."""
    sizes = {
        key: int(kib) * 1024
        for key, kib in re.findall(r"^(\w+):\s+([0-9]{1,19}) kB", node.read("/proc/meminfo") or "", re.M)
    }
    return {"total": sizes.get("MemTotal", 0), "available": sizes.get("MemAvailable", 0)}


def thp(node: Node) -> dict[str, str]:
    """Returns the chosen word of each transparent huge page setting the kernel has."""
    chosen = {}
    for name in ("enabled", "defrag", "shmem_enabled"):
        match = re.search(r"\[(.+?)\]", node.read(f"/sys/kernel/mm/transparent_hugepage/{name}") or "")
        if match:
            chosen[name] = match.group(1)
    return chosen


def capabilities(node: Node) -> dict[str, bool]:
    """Returns for each capability that a checkpoint may need whether this process has it."""
    match = re.search(r"^CapEff:\s+([0-9a-f]{1,32})", node.read("/proc/self/status") or "", re.M)
    mask = int(match.group(1), 16) if match else 0
    return {name: bool(mask >> bit & 1) for name, bit in CAPABILITIES.items()}


def open_files_limit() -> int:
    """Returns the hard limit of open files, -1 for none."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return -1 if hard == resource.RLIM_INFINITY else hard


def hard_limits() -> dict[str, int | str]:
    """Returns this process' hard limits of open files, processes and locked memory (bytes), or `unlimited`."""
    kinds = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC, "memlock": resource.RLIMIT_MEMLOCK}
    limits = {name: resource.getrlimit(kind)[1] for name, kind in kinds.items()}
    return {name: "unlimited" if limit == resource.RLIM_INFINITY else limit for name, limit in limits.items()}


def os_release(node: Node) -> dict[str, str]:
    """Returns the fields of /etc/os-release."""
    return dict(re.findall(r'^(\w+)="?(.*?)"?$', node.read("/etc/os-release") or "", re.M))


def cpu(node: Node) -> dict[str, object]:
    """Returns model, number of processors, frequency governor and number of NUMA nodes."""
    info = node.read("/proc/cpuinfo") or ""
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.M)
    return {
        "model": model.group(1) if model else None,
        "count": len(re.findall(r"^processor\s*:", info, re.M)),
        "governor": node.read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "numa_nodes": len(node.glob("/sys/devices/system/node/node[0-9]*")) or 1,
    }


def program_version(node: Node, *argv: str) -> str | None:
    """Returns the version that a command prints, None if it is missing, fails or prints none."""
    done = node.run(*argv)
    return version_in(done.stdout + done.stderr) if done.rc == 0 else None
