# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader of CRIU's images, and that each of its users notices an image that was cut at any byte."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.criu import image, images, remaps, stats
from ansible.module_utils.ckpt.criu.image import FileEntry, ImageError, PagemapEntry, RemapEntry
from ansible.module_utils.ckpt.errors import CkptError
from project import ROOT

TESTS = ROOT / "tests"
CRIU = TESTS / "fixtures" / "criu-4.2.1"
SAMPLES = TESTS / "fuzz" / "seeds" / "samples"
# written by CRIU 4.2.1, all of them
RECORDED = [
    (CRIU / "inventory.img", image.INVENTORY),
    (CRIU / "pagemap-25925.img", image.PAGEMAP),
    (CRIU / "stats-dump", image.STATS),
    (CRIU / "stats-restore", image.STATS),
    (SAMPLES / "pagemap.img", image.PAGEMAP),
    (SAMPLES / "files.img", image.FILES),
    (SAMPLES / "remap-fpath.img", image.REMAPS),
]


def read(data: bytes, kind: image.Kind) -> list[bytes]:
    return list(image.messages(io.BytesIO(data), kind))


def sound_cuts(data: bytes, kind: image.Kind) -> set[int]:
    """Where an image can be cut and is sound: behind each message but the last."""
    ends, position = set(), len(kind.head)
    while position < len(data):
        position += 4 + int.from_bytes(data[position : position + 4], "little")
        ends.add(position)
    assert position == len(data)
    return ends - {len(data)}


@pytest.mark.parametrize(("path", "kind"), RECORDED, ids=lambda value: getattr(value, "name", None))
def test_an_image_that_is_cut_within_a_message_is_noticed(path: Path, kind: image.Kind) -> None:
    data = path.read_bytes()
    sound = sound_cuts(data, kind)
    for cut in set(range(len(data))) - sound:
        with pytest.raises(ImageError, match="is cut short"):
            read(data[:cut], kind)
    for cut in sound:
        assert len(read(data[:cut], kind)) < len(read(data, kind))


@pytest.mark.parametrize(("path", "kind"), RECORDED, ids=lambda value: getattr(value, "name", None))
def test_an_image_of_another_kind_is_named(path: Path, kind: image.Kind) -> None:
    for other in (image.INVENTORY, image.PAGEMAP, image.STATS, image.FILES, image.REMAPS):
        if other != kind:
            with pytest.raises(ImageError, match=f"does not begin as CRIU's {other.name} does"):
                read(path.read_bytes(), other)


def test_no_image_has_no_messages(tmp_path: Path) -> None:
    assert list(image.entries(str(tmp_path / "remap-fpath.img"), image.REMAPS)) == []


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x08", "integer"),
        (b"\x08\x80", "integer"),
        (b"\x08" + b"\x80" * 11, "integer"),
        (b"\x0a\x02x", "field that is cut short"),
        (b"\x09\x00" + b"\0" * 8, "wire type 1"),
    ],
)
def test_a_message_with_a_cut_field_is_noticed(message: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        image.Message(message)


@pytest.mark.parametrize(
    ("kind", "message", "words"),
    [
        (RemapEntry, b"\x08\x01", "lacks the field 2"),
        (RemapEntry, b"\x0a\x01x\x10\x02", "text where a number belongs"),
        (FileEntry, b"\x1a\x02\x08\x07", "lacks the field 6"),
        (FileEntry, b"\x1a\x04\x08\x07\x30\x01", "a number where text"),
        (PagemapEntry, b"\x10\x01", "lacks the field 1"),
    ],
)
def test_a_message_without_what_each_has_is_noticed(
    kind: type[RemapEntry | FileEntry | PagemapEntry], message: bytes, words: str
) -> None:
    with pytest.raises(ImageError, match=words):
        kind.of(message)


def test_fields_have_names() -> None:
    (remap,) = map(RemapEntry.of, image.entries(str(SAMPLES / "remap-fpath.img"), image.REMAPS))
    assert remap == RemapEntry(original_id=13, remap_id=14, type=image.LINKED)
    files = [FileEntry.of(message) for message in image.entries(str(SAMPLES / "files.img"), image.FILES)]
    assert files[0] is not None
    assert (files[0].id, files[0].name) == (1, "/usr/bin/python3.11")
    assert {13, 14} <= {file.id for file in files if file}
    _head, first, *_rest = image.entries(str(SAMPLES / "pagemap.img"), image.PAGEMAP)
    assert PagemapEntry.of(first) == PagemapEntry(address=0x41F000, pages=1, flags=image.PE_PRESENT)


def test_pages_in_a_parent_take_no_room() -> None:
    page = image.PAGE_BYTES
    assert PagemapEntry(4096, 3, image.PE_PRESENT).present_bytes == 3 * page
    assert PagemapEntry(4096, 3, image.PE_PARENT).present_bytes == 0
    assert PagemapEntry(4096, 3, image.PE_PARENT | image.PE_PRESENT).present_bytes == 0
    assert PagemapEntry(4096, 3, None, in_parent=True).present_bytes == 0
    assert PagemapEntry(4096, 3, None).present_bytes == 3 * page


def test_the_count_of_64_bits_is_the_one_that_counts() -> None:
    old, new = b"\x08\x00\x10\x03\x20\x04", b"\x08\x00\x10\x00\x20\x04\x28\x80\x80\x80\x80\x20"
    assert [PagemapEntry.of(message).pages for message in (old, new)] == [3, 1 << 33]


@pytest.mark.parametrize("name", ["stats-dump", "stats-restore"])
def test_stats_cut_at_any_byte_are_noticed(name: str, tmp_path: Path) -> None:
    data = (CRIU / name).read_bytes()
    for cut in range(len(data)):
        (tmp_path / name).write_bytes(data[:cut])
        with pytest.raises(ImageError):
            stats.read_stats(str(tmp_path / name))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The least that counts as whole: an inventory, a tree, a pagemap, and a hole of the size that it promises."""
    shutil.copy(CRIU / "inventory.img", tmp_path)
    shutil.copy(SAMPLES / "pagemap-short.img", tmp_path / "pagemap-7.img")
    (tmp_path / "pstree.img").touch()
    pages_id, size = images.read_pagemap(str(tmp_path / "pagemap-7.img"))
    (tmp_path / f"pages-{pages_id}.img").touch()
    os.truncate(tmp_path / f"pages-{pages_id}.img", size)
    assert images.require_whole(str(tmp_path)).pagemap_bytes == size > 0
    return tmp_path


@pytest.mark.parametrize("name", ["pagemap-7.img", "inventory.img"])
def test_a_checkpoint_with_an_image_cut_at_any_byte_is_refused(checkpoint: Path, name: str) -> None:
    data = (checkpoint / name).read_bytes()
    for cut in range(len(data)):
        (checkpoint / name).write_bytes(data[:cut])
        with pytest.raises(CkptError) as caught:
            images.require_whole(str(checkpoint))
        assert caught.value.reason == "images_truncated"


@pytest.fixture
def links(tmp_path: Path) -> Path:
    """The images that name a file that CRIU linked back."""
    for name in ("files.img", "remap-fpath.img"):
        shutil.copy(SAMPLES / name, tmp_path)
    return tmp_path


def named(links: Path) -> bool:
    """Whether the list of open files still has both that the sample's remap refers to."""
    files = map(FileEntry.of, image.entries(str(links / "files.img"), image.FILES))
    return {13, 14} <= {file.id for file in files if file}


@pytest.mark.parametrize(("name", "kind"), [("files.img", image.FILES), ("remap-fpath.img", image.REMAPS)])
def test_links_of_images_cut_at_any_byte_are_right_or_refused(links: Path, name: str, kind: image.Kind) -> None:
    whole = remaps.linked_back(str(links))
    assert len(whole) == 1
    data = (links / name).read_bytes()
    sound = sound_cuts(data, kind)
    for cut in range(len(data)):
        (links / name).write_bytes(data[:cut])
        if cut in sound and named(links):
            assert remaps.linked_back(str(links)) == whole
            continue
        with pytest.raises(CkptError) as caught:
            remaps.linked_back(str(links))
        assert caught.value.reason == "images_truncated"


def test_the_size_of_a_file_in_an_image_cut_within_a_message_is_refused(links: Path) -> None:
    data = (links / "files.img").read_bytes()
    for cut in set(range(len(data))) - sound_cuts(data, image.FILES):
        (links / "files.img").write_bytes(data[:cut])
        with pytest.raises(CkptError) as caught:
            remaps.size_of(str(links), "/usr/bin/python3.11")
        assert caught.value.reason == "images_truncated"
