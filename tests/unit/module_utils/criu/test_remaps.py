# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that CRIU linked back: named by the images, kept, and put back after a restore used them up."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.criu import image, remaps
from ansible.module_utils.ckpt.errors import CkptError


def number(field: int, value: int) -> bytes:
    """A field with a small number, as protobuf writes it."""
    return bytes([field << 3, value])


def data(field: int, content: bytes) -> bytes:
    """A field with bytes or a message."""
    size = len(content)
    length = bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])
    return bytes([field << 3 | 2]) + length + content


def written(kind: image.Kind, *entries: bytes) -> bytes:
    """A CRIU image: its head, then each entry with its size before it."""
    return kind.head + b"".join(struct.pack("<I", len(entry)) + entry for entry in entries)


def regular(identity: int, name: str, size: int = 0) -> bytes:
    """file_entry of a regular file (reg_file_entry: id 1, flags 2, pos 3, name 6, size 8)."""
    file = number(1, identity) + number(2, 0) + data(6, name.encode()) + number(8, size)
    return number(1, 1) + number(2, identity) + data(3, file)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A checkpoint with a link to a deleted semaphore, a ghost file, and a socket."""
    folder = tmp_path / "images"
    folder.mkdir()
    held = tmp_path / "shm"
    held.mkdir()
    socket = number(1, 2) + number(2, 9) + data(4, number(1, 9))
    files = [
        regular(7, f"{held}/sem.gone"),
        regular(8, f"{held}/link_remap.8"),
        regular(3, f"{held}/{'x' * 200}"),
        socket,
    ]
    (folder / "files.img").write_bytes(written(image.FILES, *files))
    linked, ghost = number(1, 7) + number(2, 8), number(1, 3) + number(2, 4) + number(3, 1)
    (folder / "remap-fpath.img").write_bytes(written(image.REMAPS, linked, ghost))
    return folder


def test_links_are_named_and_ghosts_are_not(images: Path, tmp_path: Path) -> None:
    assert remaps.linked_back(str(images)) == {f"{tmp_path}/shm/link_remap.8": f"{tmp_path}/shm/sem.gone"}


def test_used_up_files_come_back_with_content_and_mode(images: Path, tmp_path: Path) -> None:
    link = tmp_path / "shm" / "link_remap.8"
    link.write_bytes(b"semaphore")
    link.chmod(0o640)
    remaps.keep(str(images), str(tmp_path / "links"))
    assert not link.exists(), "the next dump would meet it"
    placed = remaps.put_back(str(tmp_path / "links"))
    assert link.read_bytes() == b"semaphore"
    assert link.stat().st_mode & 0o777 == 0o640
    assert remaps.put_back(str(tmp_path / "links")) == placed, "what a restore that was killed has left is taken"
    remaps.take_away(placed)
    assert not link.exists()
    remaps.take_away(placed)


def test_the_size_of_an_open_file_is_that_of_the_images(tmp_path: Path) -> None:
    (tmp_path / "files.img").write_bytes(
        written(image.FILES, regular(5, "var/log/server.log", 99), regular(6, "var/log/other.log", 7))
    )
    assert remaps.size_of(str(tmp_path), "/var/log/server.log") == 99
    assert remaps.size_of(str(tmp_path), "/var/log/none.log") is None


def test_a_process_that_runs_on_still_holds_its_file(images: Path, tmp_path: Path) -> None:
    name = tmp_path / "shm" / "sem.gone"
    with name.open("w+b") as held:
        held.write(b"semaphore")
        held.flush()
        name.unlink()
        remaps.keep(str(images), str(tmp_path / "links"), [os.getpid()])
    remaps.put_back(str(tmp_path / "links"))
    assert (tmp_path / "shm" / "link_remap.8").read_bytes() == b"semaphore"


def test_a_file_that_nobody_holds_is_an_error_with_its_name(images: Path, tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=r"sem\.gone"):
        remaps.keep(str(images), str(tmp_path / "links"))


def test_a_checkpoint_without_links_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    remaps.keep(str(tmp_path / "images"), str(tmp_path / "links"))
    remaps.put_back(str(tmp_path / "links"))
    remaps.put_back(str(tmp_path / "never kept"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "links"]


@pytest.fixture
def kept(images: Path, tmp_path: Path) -> Path:
    """What was kept of a checkpoint with one link."""
    (tmp_path / "shm" / "link_remap.8").write_bytes(b"semaphore")
    remaps.keep(str(images), str(tmp_path / "links"))
    return tmp_path / "links"


@pytest.mark.parametrize("way", ["bytes", "mode", "second name", "link", "dangling link", "pipe", "folder"])
def test_a_foreign_file_in_the_way_is_named_and_left_alone(kept: Path, tmp_path: Path, way: str) -> None:
    link, target = tmp_path / "shm" / "link_remap.8", tmp_path / "target"
    if way == "pipe":
        os.mkfifo(link)
    elif way == "folder":
        link.mkdir()
    elif way in ("link", "dangling link"):
        link.symlink_to(target)
    else:
        link.write_bytes(b"semaphor!" if way == "bytes" else b"semaphore")
        link.chmod(0o666 if way == "mode" else (kept / "0").stat().st_mode & 0o777)
    if way == "link":
        target.write_bytes(b"semaphore")
    if way == "second name":
        os.link(link, target)
    before = link.lstat()
    with pytest.raises(CkptError, match=r"link_remap\.8 is in the way"):
        remaps.put_back(str(kept))
    assert (link.lstat().st_ino, link.lstat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert target.exists() == (way in ("link", "second name"))


def test_a_file_of_another_that_came_after_a_restore_is_not_removed(kept: Path, tmp_path: Path) -> None:
    placed = remaps.put_back(str(kept))
    link = tmp_path / "shm" / "link_remap.8"
    link.rename(tmp_path / "used up")
    link.write_bytes(b"semaphore")
    remaps.take_away(placed)
    assert link.exists()


def test_a_folder_in_which_others_exchange_files_is_refused(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "shm").chmod(0o777)
    with pytest.raises(CkptError, match="other users can exchange files"):
        remaps.put_back(str(kept))
    (tmp_path / "shm").chmod(0o1777)
    assert set(remaps.put_back(str(kept))) == {f"{tmp_path}/shm/link_remap.8"}
