# SPDX-License-Identifier: GPL-3.0-or-later
"""Which CRIU a lane uses, with which switches, and how they reach it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import CkptError
from ..parsing import FormatError, pick
from ..system.commands import SYSTEM_PATH, Commands
from ..versions import version_in, version_tuple
from ..vocabulary import BUILDS
from . import settings
from .folder import HOME, BuildFolder

# the first release with --network-lock, which the process runtime uses
MINIMUM_VERSION = (3, 17)


@dataclass
class Criu:
    """One build of CRIU and the switches of a lane."""

    build: str = "current"
    switches: dict[str, str] = field(default_factory=dict)
    home: str = HOME
    digest: str | None = None
    version: str | None = None

    @property
    def files(self) -> BuildFolder:
        """Where the parts of the build are."""
        return BuildFolder(os.path.join(self.home, self.build))

    def require(self, commands: Commands) -> None:
        """Finds out digest and version. Raises CkptError (criu_missing, criu_too_old)."""
        binary = self.files.binary
        if not os.access(binary, os.X_OK):
            raise CkptError(
                "criu_missing",
                f"there is no CRIU build `{self.build}` on this node ({binary} is not an executable file); "
                "run provision.yml, or let the lane name a build that exists.",
            )
        try:
            provenance = self.files.read_description() or {}
            self.digest = pick(provenance, "digest", kind=str, default=None)
            self.version = pick(provenance, "criu_version", kind=str, default=None) or self._ask_version(commands)
        except FormatError as error:
            raise CkptError(
                "criu_missing",
                f"{self.files.description} {error}; remove that build's folder, then run provision.yml.",
            ) from error
        if version_tuple(self.version) < MINIMUM_VERSION:
            raise CkptError(
                "criu_too_old",
                f"CRIU {self.version} of the build `{self.build}` is too old; "
                f"{'.'.join(map(str, MINIMUM_VERSION))} or newer is needed (the role criu builds 4.2.1).",
            )

    def require_front(self) -> None:
        """The `criu` that container runtimes find must be the front. Raises CkptError (criu_missing)."""
        found = shutil.which("criu", path=SYSTEM_PATH)
        target = os.path.realpath(found) if found else None
        if target is None or not target.startswith(os.path.realpath(self.home) + os.sep):
            raise CkptError(
                "criu_missing",
                f"container runtimes would start {found or 'no criu at all'} instead of the front below {self.home}; "
                "run provision.yml (the role criu links /usr/local/sbin/criu).",
            )

    def _ask_version(self, commands: Commands) -> str:
        binary = self.files.binary
        result = commands.run([binary, "--version"], timeout_s=20)
        version = version_in(result.stdout)
        if result.rc != 0 or version is None:
            raise CkptError(
                "criu_missing",
                f"{binary} does not run ({result.stderr.strip()[:200] or 'no version in its output'}); "
                "build it again with provision.yml.",
            )
        return version

    def effective_switches(self) -> dict[str, str]:
        """CRIU_* settings as CRIU sees them: the node's defaults, then those of the lane."""
        node = {name: value for name, value in _node_settings().items() if settings.SWITCH.fullmatch(name)}
        return {**node, **self.switches}

    def environment(self) -> dict[str, str]:
        """The environment for the real binary, the same that the front makes."""
        return {
            **_node_settings(),
            **self.switches,
            "CRIU_LIBS_DIR": self.files.plugins,
            "PATH": f"{self.files.programs}:{SYSTEM_PATH}",
        }

    def as_record(self) -> dict[str, Any]:
        """For a record."""
        return {"name": self.build, "digest": self.digest, "version": self.version}


def parse_criu(raw: Mapping[str, Any]) -> Criu:
    """The module option `criu`. Raises CkptError (bad_input) that names every wrong key."""
    given = raw.get("switches") or {}
    if not isinstance(given, Mapping):
        raise CkptError("bad_input", "the option criu is wrong: criu.switches must be a dictionary.")
    switches = {str(key): str(value) for key, value in given.items()}
    errors = [
        f"criu.switches.{key!s:.40} is not a CRIU_* variable" for key in switches if not settings.SWITCH.fullmatch(key)
    ]
    errors += [
        f"criu.switches.{key!s:.40} may hold letters, digits and _ . / : , = + - only"
        for key, value in switches.items()
        if not settings.SAFE_VALUE.fullmatch(value)
    ]
    build = raw.get("build") or "current"
    if build not in BUILDS:
        errors.append(f"criu.build must be one of {', '.join(BUILDS)}")
    home = raw.get("home") or HOME
    if not isinstance(home, str) or not home.startswith("/") or not settings.SAFE_VALUE.fullmatch(home):
        errors.append("criu.home must be an absolute path of letters, digits and _ . / : , = + - only")
    if errors:
        raise CkptError("bad_input", f"the option criu is wrong: {'; '.join(errors)}.")
    return Criu(build, switches, home)


def _node_settings() -> dict[str, str]:
    """What CRIU reads of the node's file."""
    return (settings.read(settings.DEFAULTS_FILE) or settings.Settings()).of_criu
