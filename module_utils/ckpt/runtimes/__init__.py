# SPDX-License-Identifier: GPL-3.0-or-later
"""Runtimes: what holds the server's processes. A new one is one file here and one line below."""

from __future__ import annotations

from ansible.module_utils.ckpt.commands import Commands
from ansible.module_utils.ckpt.criu import Criu
from ansible.module_utils.ckpt.runtimes.base import Runtime
from ansible.module_utils.ckpt.runtimes.podman import PodmanRuntime
from ansible.module_utils.ckpt.runtimes.process import ProcessRuntime
from ansible.module_utils.ckpt.spec import ServerSpec

RUNTIMES: dict[str, type[Runtime]] = {"podman": PodmanRuntime, "process": ProcessRuntime}


def make_runtime(name: str, spec: ServerSpec, criu: Criu, commands: Commands) -> Runtime:
    """The runtime of that name for one server."""
    return RUNTIMES[name](spec, criu, commands)
