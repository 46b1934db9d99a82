# SPDX-License-Identifier: GPL-3.0-or-later
"""What a checkpoint holds, by part: GPU memory may lie in page images, in files of its own, or in both."""

import pytest

from gpuckpt_report.analysis.run import CheckpointSize
from gpuckpt_report.show.contents import contents
from gpuckpt_report.show.phase_classes import GPU, IMAGES, MEMORY, OTHER


@pytest.mark.parametrize(
    ("images", "gpu", "expected"),
    [
        ({"pages": 100, "core": 3}, None, (0, 100, 3, 0)),
        ({"pages": 100, "core": 3, "rootfs": 5}, 60, (60, 40, 3, 5)),
        ({"pages": 50, "gpu": 60, "core": 3}, 70, (70, 40, 3, 0)),
        ({"pages": 50, "gpu": 60, "core": 3}, None, (60, 50, 3, 0)),
        ({"pages": 5, "core": 3}, 60, (5, 0, 3, 0)),
    ],
)
def test_every_byte_counts_once(images: dict[str, int], gpu: int | None, expected: tuple[int, ...]) -> None:
    size = CheckpointSize(lane="", images=images, total=sum(images.values()), gpu=gpu, archive=None, dump_s=None)
    found = contents(size)
    assert (found[GPU], found[MEMORY], found[IMAGES], found[OTHER]) == expected
    assert sum(expected) == sum(images.values())
