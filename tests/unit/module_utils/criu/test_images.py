# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes, soundness and statistics of recorded images."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.criu import images
from ansible.module_utils.ckpt.criu import stats as criu_stats
from ansible.module_utils.ckpt.criu.image import ImageError
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.system.commands import Commands, Result

PAGES_BYTES = 44560384


@pytest.fixture
def checkpoint(criu: Path, tmp_path: Path) -> Path:
    """A recorded checkpoint, its pages image as a hole of the right size."""
    for name in ("inventory.img", "pagemap-25925.img"):
        shutil.copy(criu / name, tmp_path)
    (tmp_path / "pstree.img").touch()
    (tmp_path / "pages-1.img").touch()
    os.truncate(tmp_path / "pages-1.img", PAGES_BYTES)
    return tmp_path


def test_a_whole_checkpoint(checkpoint: Path) -> None:
    report = images.require_whole(str(checkpoint))
    assert report.pagemap_bytes == PAGES_BYTES
    assert report.bytes_by_kind == {"pages": PAGES_BYTES, "pagemap": 2131, "tree": 86}


@pytest.mark.parametrize("size", [0, PAGES_BYTES - 1, PAGES_BYTES + 4096])
def test_a_pages_image_of_the_wrong_size(checkpoint: Path, size: int) -> None:
    os.truncate(checkpoint / "pages-1.img", size)
    with pytest.raises(CkptError, match=r"pages-1\.img holds") as caught:
        images.require_whole(str(checkpoint))
    assert caught.value.reason == "images_truncated"


def test_a_missing_pages_image(checkpoint: Path) -> None:
    (checkpoint / "pages-1.img").unlink()
    with pytest.raises(CkptError, match=r"pages-1\.img is missing"):
        images.require_whole(str(checkpoint))


@pytest.mark.parametrize("keep", [4, 9, 60, 2130])
def test_a_pagemap_cut_short(checkpoint: Path, keep: int) -> None:
    os.truncate(checkpoint / "pagemap-25925.img", keep)
    with pytest.raises(CkptError) as caught:
        images.require_whole(str(checkpoint))
    assert caught.value.reason == "images_truncated"


def test_an_inventory_that_is_none(checkpoint: Path) -> None:
    (checkpoint / "inventory.img").write_bytes(b"nonsense")
    with pytest.raises(CkptError, match="inventory"):
        images.require_whole(str(checkpoint))


def test_an_image_that_cannot_be_read_is_no_damage(checkpoint: Path) -> None:
    (checkpoint / "core-1.img").symlink_to("core-1.img")
    (checkpoint / "mm-1.img").mkdir()
    with pytest.raises(CkptError, match=r"core-1\.img is not a file") as caught:
        images.require_whole(str(checkpoint))
    assert caught.value.reason == "file_unusable"
    assert caught.value.log_lines == ["core-1.img", "mm-1.img"]


def test_the_numbers_that_a_restore_needs(checkpoint: Path) -> None:
    for name in ("core-25925.img", "core-25927.img", "core-x.img", f"core-{'9' * 5000}.img"[:200], "fs-3.img"):
        (checkpoint / name).touch()
    assert images.numbers(str(checkpoint)) == {25925, 25927}


@pytest.mark.parametrize("name", ["pstree.img", "inventory.img"])
def test_no_tree_of_processes(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(CkptError, match=name):
        images.require_whole(str(checkpoint))


@pytest.mark.parametrize(
    "image",
    [
        b"\x80" * 100000,  # a number without end
        (1 << 31).to_bytes(4, "little"),  # a message larger than any
        (2).to_bytes(4, "little") + b"\x0a\x00",  # text where a number belongs
    ],
)
def test_a_pagemap_that_would_take_time_or_memory(checkpoint: Path, image: bytes) -> None:
    head = (checkpoint / "pagemap-25925.img").read_bytes()[:8]
    (checkpoint / "pagemap-25925.img").write_bytes(head + image)
    with pytest.raises(CkptError, match="pagemap-25925") as caught:
        images.require_whole(str(checkpoint))
    assert caught.value.reason == "images_truncated"


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(CkptError) as caught:
        images.require_whole(str(tmp_path / "nowhere"))
    assert caught.value.reason == "images_missing"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pages-1.img", "pages"),
        ("gpu-staged-7.img", "gpu"),
        ("pagemap-shmem-7.img", "pagemap"),
        ("core-12.img", "core"),
        ("tmpfs-dev-40.tar.gz.img", "rootfs"),
        ("ip6tables-9.img", "network"),
        ("never-seen.img", "other"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert images.kind_of(name) == kind


def test_listing_of_an_exported_archive(podman: Path) -> None:
    rows = images.listing((podman / "tar-list.txt").read_text())
    names = {name for _, name in rows}
    assert "checkpoint/inventory.img" in names
    assert max(rows)[1] == "checkpoint/pages-1.img"
    assert images.archive_kind("rootfs-diff.tar") == "rootfs"
    assert images.archive_kind("spec.dump") == "container"


@pytest.mark.parametrize(
    ("stderr", "reason", "words"),
    [
        # as GNU tar 1.34 said it on a machine without zstd
        ("tar (child): zstd: Cannot exec: No such file or directory\n", "runtime_failed", "install zstd"),
        ("tar: Unexpected EOF in archive\n", "images_truncated", "is damaged"),
    ],
)
def test_archive_that_tar_does_not_read(stderr: str, reason: str, words: str) -> None:
    class Tar(Commands):
        def run(self, *_arguments: object, **_options: object) -> Result:
            return Result(["tar"], 2, "", stderr, 0.0, 0.0)

    with pytest.raises(CkptError, match=words) as caught:
        images.inspect_archive(Tar(), "/store/checkpoint.tar.zst")
    assert caught.value.reason == reason


def test_stats_of_a_dump(criu: Path) -> None:
    stats = criu_stats.read_stats(str(criu / "stats-dump"))
    assert stats["frozen_time_us"] == 562585
    assert stats["pages_written"] == 72313
    assert len(stats) == len(criu_stats.DUMP_FIELDS)


def test_stats_of_a_restore(criu: Path) -> None:
    stats = criu_stats.read_stats(str(criu / "stats-restore"))
    assert stats["pages_restored"] > 70000
    assert stats["restore_time_us"] > 1000


def test_stats_that_are_none(criu: Path, tmp_path: Path) -> None:
    assert criu_stats.read_stats(str(tmp_path / "nothing")) == {}
    image = (criu / "stats-dump").read_bytes()
    for damaged in (b"", image[:11], image[:-1], b"\0" * 40):
        with pytest.raises(ImageError):
            criu_stats.decode(damaged)
