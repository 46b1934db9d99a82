# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter of the role model_cache: which settings cannot work."""

from __future__ import annotations

import re
from typing import Any

Data = dict[str, Any]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def model_cache_problems(asked: Data) -> list[str]:
    """Returns everything in the settings that cannot work, each with what to do about it.

    :param asked: ``name``, ``source`` (synthetic, hub, path), ``path``, ``repository``, ``revision``, ``sha256`` (by file)
    """
    no_digests = [name for name, digest in asked["sha256"].items() if not SHA256.fullmatch(str(digest))]
    rules = [
        (
            not NAME.fullmatch(asked["name"]),
            f"model_cache_name is {asked['name']}; use letters, digits, dots, - and _.",
        ),
        (
            asked["source"] == "path" and not asked["path"],
            "model_cache_source is path, but model_cache_path is empty. Name the folder of the model on the node.",
        ),
        (
            asked["source"] == "hub" and not COMMIT.fullmatch(asked["revision"]),
            f"model_cache_revision is {asked['revision'] or 'empty'}. "
            f"Name a commit of {asked['repository']} (40 hexadecimal digits).",
        ),
        (bool(no_digests), f"model_cache_sha256 has values that are no SHA-256: {', '.join(no_digests)}."),
    ]
    return [message for wrong, message in rules if wrong]


class FilterModule:
    """Register the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filter by name."""
        return {"model_cache_problems": model_cache_problems}
