# SPDX-License-Identifier: GPL-3.0-or-later
"""What another user of the node can read or exchange of a server and its checkpoints: nothing (real CRIU, real podman)."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from support import STOCK, Call, Result

pytestmark = pytest.mark.integration
SECRET = "known-to-the-server-alone"


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder outside the store that every user may enter; files are made with all rights unless somebody takes them away."""
    folder = Path(mkdtemp(dir="/var/tmp", prefix="gpuckpt-test-"))
    folder.chmod(0o755)
    before = os.umask(0)
    yield folder
    os.umask(before)
    subprocess.run(["rm", "-rf", folder], check=True)


def found_by_nobody(folder: Path) -> list[str]:
    """What a user who is not root finds below a folder."""
    argv = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "find",
        str(folder),
        "-mindepth",
        "1",
        "-readable",
    ]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()


def test_archives_and_logs_are_roots_alone(call: Call, server: Result, public: Path) -> None:
    checkpoint = {"dir": str(public / "made" / "on the way" / "golden"), "source": "tar"}
    log = public / "logs" / "of servers" / "server.log"
    server["server"].update(stdout=str(log), env={"SECRET": SECRET})
    assert call("ckpt_start", **server)["record"]["status"] == "ok"
    assert call("ckpt_checkpoint", **server, criu=STOCK, checkpoint=checkpoint)["record"]["status"] == "ok"
    archive = Path(checkpoint["dir"], "checkpoint.tar")
    assert SECRET.encode() in archive.read_bytes(), "the archive holds no environment: this test proves nothing"
    assert log.exists() == (server["runtime"] == "process")
    assert found_by_nobody(public) == []
    open_to_others = [path for path in public.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o077]
    # CRIU's counters, which it makes for everybody, in a folder that nobody else may enter
    assert [path.name for path in open_to_others if path.name != "stats-dump"] == []

    # closed again before the restore, as one that a release before this one made
    for path in (archive, archive.parent, archive.parent.parent, archive.parents[2]):
        path.chmod(0o755)
    assert call("ckpt_restore", **server, criu=STOCK, checkpoint=checkpoint)["record"]["status"] == "ok"
    assert stat.S_IMODE(archive.parent.stat().st_mode) == 0o700
    assert str(archive) not in found_by_nobody(public)
    call("ckpt_stop", **server)


def test_a_checkpoint_that_others_can_exchange_is_not_restored(
    call: Call, process_server: Result, public: Path
) -> None:
    checkpoint = {"dir": str(public / "golden"), "source": "tar"}
    call("ckpt_start", **process_server)
    assert call("ckpt_checkpoint", **process_server, criu=STOCK, checkpoint=checkpoint)["record"]["status"] == "ok"
    public.chmod(0o777)
    refused = call("ckpt_restore", **process_server, criu=STOCK, checkpoint=checkpoint)
    assert (refused["reason"], refused["failed"]) == ("bad_input", True)
    assert f"other users may write to {public}" in refused["msg"]
    public.chmod(0o755)

    hostile = tarfile.TarInfo("../../../../etc/gpuckpt-test")
    with tarfile.open(public / "golden" / "checkpoint.tar", "a") as out:
        out.addfile(hostile)
    refused = call("ckpt_restore", **process_server, criu=STOCK, checkpoint=checkpoint)
    assert refused["reason"] == "bad_input"
    assert "is no image of a checkpoint" in refused["msg"]
    assert not Path("/etc/gpuckpt-test").exists()
