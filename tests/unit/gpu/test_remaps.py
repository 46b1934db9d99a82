# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that CRIU linked back: found in files.img, kept, and put back after a restore used them up."""

from pathlib import Path

from ansible.module_utils.ckpt import remaps


def entry(name: bytes) -> bytes:
    """A file's name as CRIU writes it (reg_file_entry.name): tag, length, text."""
    size = len(name)
    length = bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])
    return b"\x32" + length + name


def test_names_are_found_whatever_their_length() -> None:
    short, printable = b"dev/shm/link_remap.8", b"dev/shm/" + b"x" * 20 + b"/link_remap.10"
    long = b"a/" * 100 + b"link_remap.300"
    # what follows a name is a digit here, as in an image that was seen: the size of the next entry
    image = (
        b"\x00\x01"
        + entry(short)
        + b"3\x00"
        + b"\x10\x02"
        + entry(printable)
        + entry(b"dev/null")
        + entry(long)
        + b"\x08"
    )
    assert remaps.remapped_paths(image) == sorted(f"/{name.decode()}" for name in (short, printable, long))


def test_nothing_remapped() -> None:
    assert remaps.remapped_paths(entry(b"usr/lib/link_remapper.so")) == []


def test_used_up_files_come_back_with_content_and_mode(tmp_path: Path) -> None:
    held = tmp_path / "link_remap.7"
    held.write_bytes(b"semaphore")
    held.chmod(0o640)
    images, folder = tmp_path / "images", tmp_path / "links"
    images.mkdir()
    (images / "files.img").write_bytes(entry(str(held).lstrip("/").encode()))
    remaps.keep(str(images), str(folder))
    held.unlink()
    remaps.put_back(str(folder))
    assert held.read_bytes() == b"semaphore"
    assert held.stat().st_mode & 0o777 == 0o640


def test_a_checkpoint_without_links_is_no_error(tmp_path: Path) -> None:
    remaps.put_back(str(tmp_path / "links"))
    assert list(tmp_path.iterdir()) == []
