# SPDX-License-Identifier: GPL-3.0-or-later
"""What a checkpoint holds, in the four parts that a reader asks for. Records have it by kind of image file."""

from __future__ import annotations

from gpuckpt_report.analysis.run import CheckpointSize
from gpuckpt_report.show.phase_classes import GPU, IMAGES, MEMORY, OTHER, PhaseClass

# In the colour of the phases that restore it.
PARTS: dict[PhaseClass, str] = {
    GPU: "GPU memory",
    MEMORY: "memory of processes",
    IMAGES: "processes, files, mounts",
    OTHER: "files of the container",
}


def contents(checkpoint: CheckpointSize) -> dict[PhaseClass, int]:
    """Bytes of each part.

    What the driver parked in the host's memory lies in the page images, and is taken off them. What programs put aside
    themselves has files of its own.
    """
    pages, aside = checkpoint.images.get("pages", 0), checkpoint.images.get("gpu", 0)
    parked = min(pages, max(0, (checkpoint.gpu or 0) - aside))
    files = sum(checkpoint.images.get(kind, 0) for kind in ("rootfs", "container"))
    rest = sum(checkpoint.images.values()) - pages - aside - files
    return {GPU: parked + aside, MEMORY: pages - parked, IMAGES: rest, OTHER: files}
