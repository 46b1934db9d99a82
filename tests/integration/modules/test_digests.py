# SPDX-License-Identifier: GPL-3.0-or-later
"""A checkpoint that is not what the dump wrote is refused before anything starts (real CRIU, real podman)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.checkpoints import digests, manifest
from ansible.module_utils.ckpt.errors import CkptError
from support import STOCK, Call, Result

pytestmark = pytest.mark.integration


def flip(path: Path, position: int | None = None) -> None:
    """One bit of the byte at a position, or in the middle."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 if position is None else position)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def cut(path: Path) -> None:
    """The last two bytes are gone: of JSON, more than the end of the line."""
    os.truncate(path, path.stat().st_size - 2)


def lose(path: Path) -> None:
    """The file is gone."""
    path.unlink()


@contextmanager
def damaged(path: Path, damage: Callable[[Path], None]) -> Iterator[None]:
    """The file, damaged for a while."""
    whole = path.read_bytes()
    damage(path)
    try:
        yield
    finally:
        path.write_bytes(whole)


def refusal(layout: manifest.Layout, level: str = "metadata") -> str | None:
    """The reason why a checkpoint is not restored."""
    try:
        digests.require_intact(layout, manifest.load(layout), level)
    except CkptError as error:
        return error.reason
    return None


def test_every_damage_of_metadata_is_refused(call: Call, server: Result, store: Path) -> None:
    folder = store / "golden"
    layout = manifest.Layout(str(folder), "store")
    options = {**server, "criu": STOCK, "checkpoint": {"dir": str(folder)}}
    call("ckpt_start", **server)
    assert call("ckpt_checkpoint", **options, digests="pages")["record"]["stats"]["digests"]["bytes"] > 16 << 20
    assert refusal(layout) is None
    files = [*folder.glob("images/*"), *folder.glob("work/links/*"), folder / "checkpoint.json"]
    metadata = [path for path in files if not path.name.startswith("pages-")]
    assert len(metadata) > 12
    for path in metadata:
        for damage in (flip, cut, lose):
            if path.stat().st_size:
                with damaged(path, damage):
                    assert refusal(layout) in ("images_damaged", "images_truncated", "images_missing"), (path, damage)
    extra = folder / "images" / "core-99999.img"
    extra.write_bytes(next(folder.glob("images/core-*.img")).read_bytes())
    assert refusal(layout) == "images_damaged"
    extra.unlink()

    pages = max(folder.glob("images/pages-*.img"), key=lambda path: path.stat().st_size)
    flags = ["--keep"] if server["runtime"] == "podman" else []
    with damaged(pages, flip):
        result = call("ckpt_restore", **options, flags=flags, verify="pages")
        assert (result["reason"], result["record"]["t"]["T1"]) == ("images_damaged", None)
        assert pages.name in result["msg"]
    with damaged(next(folder.glob("images/mm-*.img")), flip):
        assert call("ckpt_restore", **options, flags=flags)["reason"] == "images_damaged"
    result = call("ckpt_restore", **options, flags=flags, verify="pages")
    assert result["record"]["status"] == "ok", result["record"]["message"]
    assert result["record"]["checks"]["memory_equal"]


def test_damage_of_an_archive_is_refused(call: Call, process_server: Result, store: Path) -> None:
    checkpoint = {"dir": str(store / "golden"), "source": "tar"}
    options = {**process_server, "criu": STOCK, "checkpoint": checkpoint}
    call("ckpt_start", **process_server)
    call("ckpt_checkpoint", **options)
    with damaged(store / "golden" / "checkpoint.tar", flip):
        result = call("ckpt_restore", **options)
        assert (result["reason"], result["record"]["t"]["T1"]) == ("images_damaged", None)
    result = call("ckpt_restore", **options, verify="pages")
    assert result["record"]["status"] == "ok", result["record"]["message"]


def in_kv_cache(pages: Path, weights: Path) -> int:
    """Where in the image the KV cache lies: the reference server fills it with copies of the weights, end to end."""
    image, sample, size = pages.read_bytes(), weights.read_bytes()[: 1 << 10], weights.stat().st_size
    position = image.find(sample)
    while image[position + size : position + size + len(sample)] != sample:
        position = image.index(sample, position + 1)
    return position


def test_damaged_memory_that_the_canary_does_not_see(
    call: Call, process_server: Result, store: Path, weights: Path
) -> None:
    """A byte of the KV cache: only the server itself, asked for a digest, knows it."""
    folder = store / "golden"
    options = {**process_server, "criu": STOCK, "checkpoint": {"dir": str(folder)}}
    process_server["server"]["command"].append(f"--kv-mib={2 * weights.stat().st_size >> 20}")
    call("ckpt_start", **process_server)
    call("ckpt_checkpoint", **options)
    pages = max(folder.glob("images/pages-*.img"), key=lambda path: path.stat().st_size)
    position = in_kv_cache(pages, weights)
    with damaged(pages, lambda path: flip(path, position)):
        unasked = call("ckpt_restore", **options, memory_digest=False, stop_after=True)
        assert (unasked["record"]["status"], unasked["record"]["checks"]["memory_equal"]) == ("ok", None)
        asked = call("ckpt_restore", **options)
        assert asked["reason"] == "memory_damaged"
        assert asked["record"]["checks"]["canary_equal"]
    assert call("ckpt_restore", **options, verify="pages")["reason"] == "bad_input", "no digests of pages were taken"
