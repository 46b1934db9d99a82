# SPDX-License-Identifier: GPL-3.0-or-later
"""What rclone and skopeo say is told with its cause and fix, and no secret is told at all."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.copies import remotes, secrecy, transfer
from ansible.module_utils.ckpt.copies.remotes import Access, open_remote
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.system.commands import Commands, Result

SECRET = "s3cr3t-of-a-user"


@pytest.mark.parametrize(
    "access",
    [
        Access(rclone=f":s3,access_key_id=a,secret_access_key={SECRET}:bucket"),
        Access(rclone=f"there,pass={SECRET}:golden"),
        Access(rclone=f"https://user:{SECRET}@example.org/golden"),
        Access(rclone="relative/folder"),
        Access(registry=f"user:{SECRET}@registry.example.org/golden"),
        Access(registry=f"https://user:{SECRET}@registry.example.org"),
        Access(registry="Registry Example"),
        Access(),
        Access(rclone="there:golden", registry="registry.example.org"),
    ],
)
def test_an_address_that_is_none_is_refused_and_not_repeated(access: Access) -> None:
    with pytest.raises(CkptError) as caught:
        open_remote(access, "one", Commands())
    assert caught.value.reason == "bad_input"
    assert SECRET not in caught.value.message


@pytest.mark.parametrize(
    ("access", "where"),
    [
        (Access(rclone="there:"), "there:one"),
        (Access(rclone="there:bucket/golden"), "there:bucket/golden/one"),
        (Access(rclone="/mnt/shared"), "/mnt/shared/one"),
        (Access(registry="registry.example.org:5000/golden"), "registry.example.org:5000/golden/one"),
    ],
)
def test_each_name_has_a_place_of_its_own(access: Access, where: str) -> None:
    assert open_remote(access, "one", Commands()).where == where


def test_a_registry_has_no_capitals(tmp_path: Path) -> None:
    with pytest.raises(CkptError, match="lower-case"):
        open_remote(Access(registry="registry.example.org"), "One", Commands())


def test_credentials_that_others_can_read_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "rclone.conf"
    with pytest.raises(CkptError, match="put it on the node"):
        open_remote(Access(rclone="there:x", credentials=str(file)), "one", Commands())
    file.write_text("")
    file.chmod(0o644)
    with pytest.raises(CkptError, match="chmod 0600"):
        open_remote(Access(rclone="there:x", credentials=str(file)), "one", Commands())


# rclone 1.60.1 and skopeo 1.9.3 on Debian 12, against the servers of tests/integration/copies; the last one is made up
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            'Failed to create file system for "there:golden/reference": NewFs: couldn\'t connect SSH: ssh: handshake failed: '
            "ssh: unable to authenticate, attempted methods [none password], no supported methods remain",
            "remote_refused",
        ),
        (
            'Failed to create file system for "there:golden/reference": read metadata failed: Unauthorized: 401 Unauthorized',
            "remote_refused",
        ),
        (
            "Failed to lsjson: error in ListJSON: SignatureDoesNotMatch: The request signature we calculated does not match the "
            "signature you provided. Check your key and signing method.\n\tstatus code: 403, request id: , host id: ",
            "remote_refused",
        ),
        (
            'time="2026-11-29T22:20:46Z" level=fatal msg="Error listing repository tags: unable to retrieve auth token: invalid '
            'username/password: unauthorized: authentication required"',
            "remote_refused",
        ),
        (
            'Failed to create file system for "there:golden/reference": NewFs: couldn\'t connect SSH: dial tcp 127.0.0.1:55121: '
            "connect: connection refused",
            "remote_unreachable",
        ),
        (
            "Failed to copyto: close tcp 127.0.0.1:56752->127.0.0.1:40303: use of closed network connection",
            "remote_unreachable",
        ),
        (
            'Failed to lsjson: error in ListJSON: RequestError: send request failed\ncaused by: Get "http://nowhere.invalid:45675/'
            'bucket": dial tcp: lookup nowhere.invalid on 192.0.2.53:53: no such host',
            "remote_unreachable",
        ),
        (
            "ERROR : Attempt 3/3 failed with 1 errors and: preallocate: file too big for remaining disk space",
            "store_full",
        ),
        ("something else", "remote_failed"),
    ],
)
def test_what_programs_say(said: str, reason: str) -> None:
    failure = remotes.explain(
        "rclone", "there cannot be listed", Result([], 1, "", f"2026/11/29 21:00:00 {said}\n", 0.0, 0.0)
    )
    assert failure.reason == reason
    assert "2026/11/29" not in failure.message


def test_what_is_secret_in_rclones_file_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "rclone.conf"
    file.write_text(
        f"[there]\ntype = s3\nendpoint = http://s3.example.org\nsecret_access_key = {SECRET}\ntoken = abcdef\n"
    )
    secrets = remotes._secrets_of(str(file))
    failure = remotes.explain(
        "rclone", "x", Result([], 1, "", f"s3 at http://s3.example.org: key {SECRET}, abcdef", 0.0, 0.0), secrets
    )
    told = failure.message + str(failure.log_lines)
    assert SECRET not in told
    assert "abcdef" not in told
    assert "http://s3.example.org" in told
    file.write_text("not a file of rclone")
    assert remotes._secrets_of(str(file)) == []


def test_a_tag_is_a_key_and_back() -> None:
    for key in ("000001-0a-0b/part-00001", "000001-0a-0b/part-00001.age", "000001-0a-0b/golden.json", "used/0a1b2c3d"):
        assert remotes._key_of(key.replace("/", ".", 1)) == key


def test_a_secret_key_in_place_of_a_public_one_is_not_repeated() -> None:
    with pytest.raises(CkptError) as caught:
        secrecy.Keys(["AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQ"])
    assert "QQQ" not in caught.value.message
    assert secrecy.Keys(["age1" + "q" * 58]).encrypts


def test_all_that_is_wrong_is_named() -> None:
    with pytest.raises(CkptError) as caught:
        transfer.Options(Access(rclone="/x"), part_bytes=9 << 30, transfers=-1, keep=-1)
    for word in ("8 GiB", "transfers", "keep"):
        assert word in caught.value.message


def test_the_first_failure_ends_the_rest() -> None:
    done: list[int] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        if number == 3:
            raise CkptError("remote_failed", "the third")
        time.sleep(0.01)
        with lock:
            done.append(number)

    with pytest.raises(CkptError, match="the third"):
        transfer.each(work, range(200), 2)
    assert len(done) < 20


def test_a_node_is_known_by_what_the_inventory_calls_it() -> None:
    assert transfer.node_id("a") == transfer.node_id("a")
    assert transfer.node_id("a") != transfer.node_id("b")
