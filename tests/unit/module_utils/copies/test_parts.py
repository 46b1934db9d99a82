# SPDX-License-Identifier: GPL-3.0-or-later
"""Files become parts and files again, byte for byte, with their holes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.copies import parts
from ansible.module_utils.ckpt.copies.parts import File, Piece
from ansible.module_utils.ckpt.errors import CkptError

MIB = 1 << 20


def sparse(path: Path, *blocks: tuple[int, bytes], size: int) -> None:
    with path.open("wb") as out:
        for offset, content in blocks:
            out.seek(offset)
            out.write(content)
        out.truncate(size)


def test_parts_have_one_size_and_all_data() -> None:
    files = [File("a", 10, [[0, 10]]), File("b", 100, [[20, 5], [50, 12]]), File("c", 0)]
    cut = parts.cut(files, 8)
    assert [sum(piece.bytes for piece in part) for part in cut] == [8, 8, 8, 3]
    assert cut[1] == [Piece("a", 8, 2), Piece("b", 20, 5), Piece("b", 50, 1)]
    assert parts.cut([File("c", 7)], 8) == []


def test_holes_are_found_and_small_ones_are_data(disk: Path) -> None:
    path = disk / "file"
    sparse(path, (0, b"x" * 4096), (4096 * 3, b"y" * 4096), (5 * MIB, b"z" * 10), size=9 * MIB)
    with path.open("rb") as opened:
        found = parts.data_of(opened.fileno(), 9 * MIB)
    assert found[0] == [0, 4096 * 4]
    assert found[1][0] == 5 * MIB
    assert len(found) == 2
    sparse(path, size=3 * MIB)
    with path.open("rb") as opened:
        assert parts.data_of(opened.fileno(), 3 * MIB) == []


@pytest.mark.parametrize("seed", range(4))
def test_there_and_back(disk: Path, seed: int) -> None:
    chance = random.Random(seed)
    (disk / "from").mkdir()
    (disk / "to").mkdir()
    names = [f"file-{number}" for number in range(5)]
    files, opened = [], {}
    for name in names:
        path, size = disk / "from" / name, chance.randrange(3 * MIB)
        blocks = [(chance.randrange(size + 1), chance.randbytes(chance.randrange(200_000))) for _ in range(3)]
        sparse(path, *blocks, size=max([size, *(offset + len(content) for offset, content in blocks)]))
        opened[name] = os.open(path, os.O_RDONLY)
        files.append(File(name, path.stat().st_size, parts.data_of(opened[name], path.stat().st_size)))
    targets = {file.path: os.open(disk / "to" / file.path, os.O_RDWR | os.O_CREAT, 0o600) for file in files}
    for file in files:
        os.ftruncate(targets[file.path], file.bytes)
    for pieces in parts.cut(files, 300_000):
        with parts.in_memory() as part:
            parts.gather(pieces, opened, part)
            assert os.fstat(part).st_size == sum(piece.bytes for piece in pieces)
            parts.scatter(pieces, part, targets)
    for name in names:
        before, after = disk / "from" / name, disk / "to" / name
        assert before.read_bytes() == after.read_bytes()
        assert after.stat().st_blocks <= before.stat().st_blocks + 2 * parts.SMALLEST_HOLE // 512 * 4


def test_a_file_that_shrank_is_named(disk: Path) -> None:
    (disk / "file").write_bytes(b"short")
    with (
        (disk / "file").open("rb") as opened,
        parts.in_memory() as part,
        pytest.raises(CkptError, match="images/x ended"),
    ):
        parts.gather([Piece("images/x", 0, 10)], {"images/x": opened.fileno()}, part)
