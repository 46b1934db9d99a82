# SPDX-License-Identifier: GPL-3.0-or-later
"""The builds of CRIU on a node: what each one is, whether it is whole, and which of them is used by whom."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from ..node.inspection import Node
from ..parsing import FormatError
from ..system.commands import Result
from ..versions import version_in
from ..vocabulary import BUILDS
from . import settings as criu_settings
from .folder import HOME, BuildFolder

SWITCHES = (
    "CRIU_MAPPED_RESTORE",
    "CRIU_MAPPED_MIN_KB",
    "CRIU_MAPPED_SCOPE",
    "CRIU_MAPPED_REDUMP",
    "CRIU_MAPPED_ALLOCATORS",
    "CRIU_RESTORE_THREADS",
    "CRIU_DRIVER_HUGE_PAGES",
    "CRIU_DRIVER_POPULATE",
    "CRIU_CUDA_BACKEND",
    "CRIU_CUDA_TIMEOUT_S",
    "CRIU_CUDA_DEVICE_MAP",
    "CRIU_CUDA_CONTEXT_POOL",
    "CRIU_CUDA_POOL_WAIT_S",
    "CRIU_CUDA_POOL_CONTEXTS",
    "CRIU_CUDA_STAGING",
    "CRIU_FREEZE_POLL_MS",
    "CRIU_HW_BREAKPOINTS",
)


@dataclass
class Build:
    """One build. `problems` is empty when its files are those that BUILD.json promises."""

    path: str
    names: list[str] = field(default_factory=list)
    manifest: dict[str, Any] | None = None
    version: str | None = None
    binary_sha256: str | None = None
    plugin_sha256: str | None = None
    switches: list[str] = field(default_factory=list)
    check: str | None = None
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For a module's result."""
        return asdict(self)

    @property
    def files(self) -> BuildFolder:
        """Where the parts of the build are."""
        return BuildFolder(self.path)


def find(node: Node, home: str = HOME) -> list[Build]:
    """Returns the builds below `home`, each with the links that lead to it, unread otherwise."""
    builds: dict[str, Build] = {}
    for path in node.glob(f"{home}/*"):
        name, real = os.path.basename(path), os.path.realpath(node.path(path))
        if not os.path.isdir(real) or name.startswith("."):
            continue
        inside = path if not os.path.islink(node.path(path)) else f"{home}/{os.path.basename(real)}"
        build = builds.setdefault(real, Build(inside))
        if name in BUILDS:
            build.names.append(name)
    return list(builds.values())


def dangling(node: Node, home: str = HOME) -> list[str]:
    """Returns the links below `home` that lead nowhere."""
    return [
        path
        for path in (f"{home}/{name}" for name in BUILDS)
        if os.path.islink(node.path(path)) and not node.exists(path)
    ]


def examine(node: Node, build: Build) -> Build:
    """Fills in what only reading and running a build tells: digests, version, what `criu check` says."""
    build.binary_sha256 = sha256(node.path(build.files.binary))
    build.plugin_sha256 = sha256(node.path(build.files.plugin))
    build.manifest = read_manifest(node, build)
    build.switches = [name for name in SWITCHES if _mentions(node, build, name)]
    if build.binary_sha256 is None:
        build.problems.append(f"{build.files.binary} is missing")
        return build
    build.problems += differences(build)
    version = execute(node, build, "--version")
    build.version = version_in(version.stdout) if version.rc == 0 else None
    if build.version is None:
        build.problems.append(f"{build.files.binary} does not run: {first_line(version)}")
        return build
    build.check = check_result(execute(node, build, "check"))
    return build


def execute(node: Node, build: Build, *arguments: str, timeout_s: float = 60.0) -> Result:
    """Runs a build's own binary, past the front, with its own plugins."""
    environment = ("env", f"CRIU_LIBS_DIR={node.path(build.files.plugins)}")
    return node.run(*environment, node.path(build.files.binary), *arguments, timeout_s=timeout_s)


def read_manifest(node: Node, build: Build) -> dict[str, Any] | None:
    """Returns BUILD.json, None where it is missing or no JSON object."""
    try:
        return BuildFolder(node.path(build.path)).read_description()
    except (FormatError, OSError):
        return None


def differences(build: Build) -> list[str]:
    """Returns in words how a build's files differ from its BUILD.json."""
    if build.manifest is None:
        return ["BUILD.json is missing or unreadable: the build was not finished"]
    found = []
    for what, actual in (("binary", build.binary_sha256), ("plugin", build.plugin_sha256)):
        promised = build.manifest.get(f"{what}_sha256")
        if promised and promised != actual:
            found.append(f"the {what} is {'missing' if actual is None else 'another'} than the one that was built")
    return found


def check_result(done: Result) -> str:
    """Returns ok, or what `criu check` complained of."""
    text = done.stdout + done.stderr
    if done.rc == 0:
        return "ok"
    return next((line for line in text.splitlines() if "Error" in line), first_line(done))


def first_line(done: Result) -> str:
    """Returns the first line a command printed, or its status where it printed none."""
    lines = (done.stderr + done.stdout).strip().splitlines()
    return lines[0] if lines else f"status {done.rc}"


def sha256(path: str) -> str | None:
    """Returns a file's digest, None if it cannot be read."""
    try:
        with open(path, "rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()
    except OSError:
        return None


def _mentions(node: Node, build: Build, switch: str) -> bool:
    """A switch is a name given to getenv(), so it stands in the program or its plugin as it is written."""
    for path in (build.files.binary, build.files.plugin):
        try:
            with open(node.path(path), "rb") as source:
                if switch.encode() + b"\0" in source.read():
                    return True
        except OSError:
            continue
    return False


def settings(node: Node) -> dict[str, dict[str, str]]:
    """Returns the settings that the front reads, by file, for those files that exist."""
    return {path: found.values for path, found in setting_files(node).items()}


def setting_files(node: Node) -> dict[str, criu_settings.Settings]:
    """Returns what each of the front's files sets and what of it is left out, for those files that exist."""
    paths = (criu_settings.DEFAULTS_FILE, criu_settings.OVERRIDES_FILE)
    read = {path: criu_settings.read(node.path(path)) for path in paths}
    return {path: found for path, found in read.items() if found is not None}
