# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs inside a container and prints what it was given, as JSON: limits, and whether the network leads anywhere."""

import json
import resource
from pathlib import Path

DEFAULT_DESTINATION = "00000000"

routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
print(
    json.dumps(
        {
            "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            "nproc": resource.getrlimit(resource.RLIMIT_NPROC)[1],
            "memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],
            "default_route": any(route[1] == DEFAULT_DESTINATION for route in routes),
        }
    )
)
