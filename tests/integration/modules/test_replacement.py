# SPDX-License-Identifier: GPL-3.0-or-later
"""A checkpoint that is taken again replaces the old one when it is complete, and never before (real CRIU, real podman)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import STOCK, Call, Result, tried_by_ci

pytestmark = pytest.mark.integration


def patched(redump: str) -> Result:
    """The patched CRIU, every page that can be mapped is."""
    switches = {"CRIU_MAPPED_RESTORE": "1", "CRIU_MAPPED_SCOPE": "all", "CRIU_MAPPED_REDUMP": redump}
    return {"build": "patched", "switches": switches}


# Each dump but the first meets a server that was restored from the checkpoint which it replaces.
GENERATIONS = [STOCK, STOCK, patched("standalone"), patched("standalone"), patched("delta"), patched("delta")]


def digest(server: Result) -> Any:
    """What the server's memory holds now, as the server itself reads it."""
    return httpx.get(f"http://127.0.0.1:{server['server']['port']}/debug/digest", timeout=30).raise_for_status().json()


def restore(call: Call, server: Result, folder: Path, criu: Result = STOCK) -> None:
    """Restore in place; the images stay where they are."""
    flags = ["--keep"] if server["runtime"] == "podman" else []
    result = call(
        "ckpt_restore", **server, criu=criu, checkpoint={"dir": str(folder)}, flags=flags, replace_running=True
    )
    assert not result.get("failed"), result["msg"]


@tried_by_ci("podman")
def test_generations_in_place_keep_every_byte(call: Call, server: Result, store: Path) -> None:
    folder = store / "golden"
    call("ckpt_start", **server)
    before = digest(server)
    for criu in GENERATIONS:
        result = call("ckpt_checkpoint", **server, criu=criu, checkpoint={"dir": str(folder)})
        assert not result.get("failed"), (criu, result["msg"], result["log_lines"])
        restore(call, server, folder, criu)
        assert digest(server) == before, criu
        assert os.listdir(store) == ["golden"], "what was replaced is gone"


@pytest.fixture
def breaks_off(server: Result, tmp_path: Path) -> Result:
    """Options that let the real CRIU fail: a hook of it at the very end, or a switch that it refuses."""
    if server["runtime"] == "podman":
        return {"criu": {"build": "patched", "switches": {"CRIU_RESTORE_THREADS": "many"}}}
    hook = tmp_path / "hook.sh"
    hook.write_text('#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]\n')
    hook.chmod(0o755)
    return {"criu": STOCK, "flags": ["--action-script", str(hook)]}


def test_a_dump_that_fails_leaves_the_old_checkpoint_and_the_server(
    call: Call, server: Result, store: Path, breaks_off: Result
) -> None:
    folder = store / "golden"
    call("ckpt_start", **server)
    before = digest(server)
    call("ckpt_checkpoint", **server, criu=STOCK, checkpoint={"dir": str(folder)}, leave_running=True)
    result = call("ckpt_checkpoint", **server, checkpoint={"dir": str(folder)}, **breaks_off)
    assert result["reason"] == "criu_failed"
    assert "The server goes on serving." in result["msg"]
    assert os.listdir(store) == ["golden"]
    # as a play does that comes after one that was broken off: the container is needed for the restore
    kin = {**server, "server": {**server["server"], "name": server["server"]["name"].rpartition("-")[0]}}
    assert call("ckpt_stop", **kin, left_behind=True)["stopped"] == [server["server"]["name"]]
    restore(call, server, folder)
    assert digest(server) == before


@pytest.fixture
def store_for_one(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs that holds one checkpoint of the server, but not two."""
    folder = tmp_path / "one"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=72m,mode=0700", "tmpfs", folder], check=True)
    yield folder
    # a server that maps its memory from there may still run
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_store_for_one_says_what_its_old_checkpoint_would_free(
    call: Call, process_server: Result, store_for_one: Path
) -> None:
    options = {**process_server, "criu": STOCK, "checkpoint": {"dir": str(store_for_one / "golden")}}
    call("ckpt_start", **process_server)
    used = call("ckpt_checkpoint", **options, leave_running=True)["record"]["bytes"]["images_total"]
    result = call("ckpt_checkpoint", **options)
    assert result["reason"] == "store_full"
    said = re.search(r"would free (\d+) MiB", result["msg"])
    assert said, result["msg"]
    assert used >> 20 <= int(said[1]) <= (used >> 20) + 8
    assert digest(process_server), "it goes on serving"
    # not the store of the node, which is mounted noexec: preflight refuses what is mapped from there in any folder
    mapped = call("ckpt_restore", **{**options, "criu": patched("standalone")}, replace_running=True)
    assert mapped["record"]["status"] == "ok", mapped["record"]["message"]
    result = call("ckpt_checkpoint", **options)
    assert result["reason"] == "not_restorable", "its memory lies in the images that would be replaced"
    assert "set criu.build: patched" in result["msg"]
    assert digest(process_server), "it goes on serving"
