# SPDX-License-Identifier: GPL-3.0-or-later
"""What another user of the node can read or exchange of a server and its checkpoints: nothing (real CRIU, real podman)."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from support import STOCK, Call, Result, identity, tried_by_ci

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


@tried_by_ci("podman")
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


def test_the_environment_and_roots_rights_stay_with_the_server(call: Call, server: Result, store: Path) -> None:
    """No value of the environment is in a command, a result or a record; the server has no capability, and is restored so."""
    server["server"]["env"] = {"SECRET": f"'{SECRET}\" = #1", "EMPTY": ""}
    checkpoint = {"dir": str(store / "golden")}
    results = [call("ckpt_start", **server, record=identity("lane"), record_path=str(store / "records" / "1.json"))]
    pid = find_server(server)
    before = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"), capabilities(pid)
    assert f"SECRET='{SECRET}\" = #1".encode() in before[0]
    assert b"EMPTY=" in before[0]
    assert set(before[1].values()) == {0}
    results.append(call("ckpt_checkpoint", **server, criu=STOCK, checkpoint=checkpoint))
    results.append(call("ckpt_restore", **server, criu=STOCK, checkpoint=checkpoint))
    assert [result["record"]["status"] for result in results] == ["ok"] * 3, results[-1]
    pid = find_server(server)
    assert (Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"), capabilities(pid)) == before
    results.append(call("ckpt_stop", **server, checkpoints=[checkpoint["dir"]]))
    failed = call("ckpt_start", **{**server, "server": {**server["server"], "colour": "blue"}})
    assert failed["reason"] == "bad_input"
    told = json.dumps([*results, failed, json.loads((store / "records" / "1.json").read_text())])
    assert SECRET not in told
    assert '"SECRET": "(not shown)"' in told


def find_server(server: Result) -> int:
    """Number on the node of the process that listens on the server's port."""
    port = server["server"]["port"]
    found = subprocess.check_output(
        ["pgrep", "--full", "--oldest", f"gpuckpt_reference_server.py.*--port={port}"], text=True
    )
    return next(int(pid) for pid in found.split())


def capabilities(pid: int) -> dict[str, int]:
    """Each set of capabilities of a process as a number."""
    lines = [line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Cap")]
    return {name: int(value, 16) for name, value in lines}


def test_what_a_server_is_to_keep_of_roots_rights(call: Call, server: Result) -> None:
    server["server"]["capabilities"] = ["CAP_NET_BIND_SERVICE", "sys_nice"]
    assert call("ckpt_start", **server)["record"]["status"] == "ok"
    assert capabilities(find_server(server))["CapEff"] == 1 << 10 | 1 << 23


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
    # its digest tells; what is unpacked where digests agree is test_archive's matter
    assert refused["reason"] == "images_damaged", refused["msg"]
    assert not Path("/etc/gpuckpt-test").exists()
