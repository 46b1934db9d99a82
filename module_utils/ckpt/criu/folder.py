# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the builds of CRIU lie, and where in the folder of one its parts are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..parsing import FormatError
from ..system.files import read_json

HOME = "/opt/gpuckpt/criu"


@dataclass(frozen=True)
class BuildFolder:
    """The folder of one build."""

    path: str

    @property
    def programs(self) -> str:
        """Folder of the programs that are called by name, the front among them."""
        return os.path.join(self.path, "bin")

    @property
    def binary(self) -> str:
        """CRIU itself, past the front."""
        return os.path.join(self.path, "libexec", "criu")

    @property
    def plugins(self) -> str:
        """Folder of CRIU's plugins (CRIU_LIBS_DIR)."""
        return os.path.join(self.path, "lib", "criu")

    @property
    def plugin(self) -> str:
        """The CUDA plugin, which a build may lack."""
        return os.path.join(self.plugins, "cuda_plugin.so")

    @property
    def cuda_checkpoint(self) -> str:
        """The cuda-checkpoint command of the build."""
        return os.path.join(self.programs, "cuda-checkpoint")

    @property
    def pool(self) -> str:
        """The context pool of the build, which a distribution's lacks."""
        return os.path.join(self.programs, "gpuckpt-pool")

    @property
    def description(self) -> str:
        """What the build was made of; written last, so a build without it is unfinished."""
        return os.path.join(self.path, "BUILD.json")

    def read_description(self) -> dict[str, Any] | None:
        """Returns what BUILD.json says, None if it is missing. Raises FormatError if it is not a JSON object."""
        found = read_json(self.description)
        if found is not None and not isinstance(found, dict):
            raise FormatError("is not an object")
        return found
