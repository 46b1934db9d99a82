# SPDX-License-Identifier: GPL-3.0-or-later
"""Runtimes: what holds the server's processes. A new one is one file here, one line below, and its row in the vocabulary."""

from __future__ import annotations

from ..criu.choice import Criu
from ..server.spec import ServerSpec
from ..system.commands import Commands
from .base import Runtime
from .podman import PodmanRuntime
from .process import ProcessRuntime

RUNTIMES: dict[str, type[Runtime]] = {"podman": PodmanRuntime, "process": ProcessRuntime}


def make_runtime(name: str, spec: ServerSpec, criu: Criu, commands: Commands) -> Runtime:
    """The runtime of that name for one server."""
    return RUNTIMES[name](spec, criu, commands)
