# SPDX-License-Identifier: GPL-3.0-or-later
"""The lowest NVIDIA driver for each feature of a CUDA checkpoint: the one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """What a driver branch brings. `minimum` is the branch (the number before the first dot), `switch` what uses it."""

    name: str
    minimum: int
    gives: str
    switch: str | None = None


FEATURES = (
    Feature("toggle", 550, "cuda-checkpoint --toggle: suspend and resume a CUDA process"),
    Feature(
        "actions",
        555,
        "cuda-checkpoint --action lock, checkpoint, restore, unlock: what CRIU's CUDA plugin needs",
        "CRIU_CUDA_BACKEND=cuda-checkpoint",
    ),
    Feature(
        "driver-api", 570, "cuCheckpointProcess*: the same without a helper process", "CRIU_CUDA_BACKEND=driver-api"
    ),
    Feature("migration", 580, "restore onto another GPU of the same kind", "CRIU_CUDA_DEVICE_MAP"),
    Feature("ipc", 610, "checkpoints of processes that share GPU memory by CUDA IPC, as tensor parallel servers do"),
)
# Without these a CUDA process cannot be checkpointed by CRIU at all.
REQUIRED = "actions"


def branch(version: str) -> int:
    """Returns the branch of a driver version such as 580.159.04. Raises ValueError where there is none."""
    return int(version.split(".", 1)[0])


def supported(version: str) -> dict[str, bool]:
    """Returns for each feature whether a driver of this version has it."""
    have = branch(version)
    return {feature.name: have >= feature.minimum for feature in FEATURES}


def minimum(name: str) -> int:
    """Returns the lowest branch that has a feature. Raises KeyError for a name that is not in the table."""
    return {feature.name: feature.minimum for feature in FEATURES}[name]
