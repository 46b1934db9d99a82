# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role serve: what follows from the runtime, and which servers a node describes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import ansible.module_utils

# Ansible finds our module_utils for modules only.
OURS = str(Path(__file__).resolve().parents[3] / "module_utils")
if OURS not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(OURS)

from ansible.module_utils.ckpt.vocabulary import RUNTIME_TRAITS


def serve_restore_flags(runtime: str) -> list[str]:
    """Returns the options with which a restore leaves the checkpoint whole. An unknown runtime is refused elsewhere."""
    return list(RUNTIME_TRAITS[runtime].keeping_flags) if runtime in RUNTIME_TRAITS else []


def serve_names(found: Iterable[dict[str, Any]]) -> list[str]:
    """Returns the names of the servers that a node describes.

    :param found: what module find found: descriptions, each with its ``path``, which ends in NAME.json
    """
    return [PurePosixPath(file["path"]).stem for file in found]


class FilterModule:
    """Register the filters with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filters by name."""
        return {"serve_restore_flags": serve_restore_flags, "serve_names": serve_names}
