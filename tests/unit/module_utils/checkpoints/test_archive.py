# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of images, and folders and files that nobody else can read: real tar, gzip and zstd."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.checkpoints import archive
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.system import private
from ansible.module_utils.ckpt.system.commands import Commands

KINDS = ["tar", "tar.gz", *(["tar.zst"] if shutil.which("zstd") else [])]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with files as CRIU leaves them."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "pages-1.img").write_bytes(os.urandom(3 << 20))
    (folder / "inventory.img").write_bytes(b"inventory")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_images_come_back_for_root_alone(images: Path, tmp_path: Path, kind: str) -> None:
    packed = tmp_path / f"checkpoint.{kind}"
    before = os.umask(0)
    try:
        archive.pack(Commands(), str(images), str(packed))
        archive.unpack(Commands(), str(packed), str(tmp_path / "on" / "the way"))
    finally:
        os.umask(before)
    back = tmp_path / "on" / "the way"
    assert contents(back) == contents(images)
    assert {path.stat().st_mode & 0o777 for path in (packed, *back.iterdir())} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (back, back.parent)} == {0o700}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["cut in half", "its last bytes cut off", "one byte changed", "not an archive"])
def test_a_damaged_archive_is_an_error_that_says_so(images: Path, tmp_path: Path, kind: str, damage: str) -> None:
    packed = tmp_path / f"checkpoint.{kind}"
    archive.pack(Commands(), str(images), str(packed))
    whole = bytearray(packed.read_bytes())
    if damage == "one byte changed":
        # in a plain archive, the head of the second member: nothing covers the bytes of a file there
        whole[whole.index(b"./inventory") + 1 if kind == "tar" else len(whole) // 2] ^= 1
    if damage == "its last bytes cut off":
        # of the last file in a plain archive, which ends with empty blocks
        whole = whole[: len(whole.rstrip(b"\0")) - 4 if kind == "tar" else -4]
    packed.write_bytes({"cut in half": whole[: len(whole) // 2], "not an archive": b"x" * 2000}.get(damage, whole))
    with pytest.raises(CkptError, match="damaged") as caught:
        archive.unpack(Commands(), str(packed), str(tmp_path / "back"))
    assert caught.value.reason == "images_truncated"


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """A member of an archive that `pack` would not write."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o6755
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside"),
        member("/outside"),
        member("sub/inside"),
        member(".."),
        member("sub", tarfile.DIRTYPE),
        member("link", tarfile.SYMTYPE, "/outside"),
        member("link", tarfile.LNKTYPE, "pages-1.img"),
        member("device", tarfile.CHRTYPE),
        member("device", tarfile.BLKTYPE),
        member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_nothing_but_images_is_unpacked(images: Path, tmp_path: Path, hostile: tarfile.TarInfo) -> None:
    packed, back = tmp_path / "checkpoint.tar", tmp_path / "back"
    archive.pack(Commands(), str(images), str(packed))
    with tarfile.open(packed, "a") as out:
        out.addfile(hostile)
    with pytest.raises(CkptError, match="no image of a checkpoint") as caught:
        archive.unpack(Commands(), str(packed), str(back))
    assert caught.value.reason == "bad_input"
    assert contents(back).keys() <= contents(images).keys()
    assert not list(tmp_path.rglob("outside"))


def test_a_second_member_of_one_name_is_refused_and_rights_are_ours(tmp_path: Path) -> None:
    packed, back = tmp_path / "checkpoint.tar", tmp_path / "back"
    with tarfile.open(packed, "w") as out:
        out.addfile(member("inventory.img"))
    archive.unpack(Commands(), str(packed), str(back))
    assert (back / "inventory.img").stat().st_mode & 0o7777 == 0o600
    with tarfile.open(packed, "a") as out:
        out.addfile(member("inventory.img"), io.BytesIO())
    with pytest.raises(CkptError, match="cannot be unpacked"):
        archive.unpack(Commands(), str(packed), str(tmp_path / "again"))


def test_an_open_folder_is_closed_and_one_that_others_can_exchange_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shared" / "golden"
    private.make_folder(str(folder))
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    private.make_folder(str(folder))
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.parent.chmod(0o777)
    with pytest.raises(CkptError, match=r"shared \(mode 0777\)"):
        private.make_folder(str(folder))
    folder.parent.chmod(0o1777)
    private.make_folder(str(folder))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to give files to another user")
def test_what_belongs_to_another_user_is_refused(tmp_path: Path) -> None:
    folder, log = tmp_path / "golden", tmp_path / "server.log"
    folder.mkdir()
    log.write_text("his")
    for path in (folder, log):
        os.chown(path, 65534, 65534)
    with pytest.raises(CkptError, match="belongs to user 65534"):
        private.make_folder(str(folder))
    with pytest.raises(OSError, match="belongs to user 65534"):
        private.open_file(str(log))
    assert log.read_text() == "his"


def test_a_file_is_closed_and_emptied_and_a_link_is_not_followed(tmp_path: Path) -> None:
    log, link = tmp_path / "server.log", tmp_path / "link"
    log.write_text("old")
    log.chmod(0o666)
    private.make_file(str(log))
    assert (log.read_text(), log.stat().st_mode & 0o777) == ("", 0o600)
    link.symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        private.make_file(str(link))
    mode = Path("/dev/null").stat().st_mode
    private.make_file("/dev/null")
    assert Path("/dev/null").stat().st_mode == mode
