# SPDX-License-Identifier: GPL-3.0-or-later
"""A golden checkpoint travels through every kind of remote, and what is wrong on the way is told and harms nothing."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.checkpoints.manifest import DIGEST, sealed
from places import PASSWORD, Given, Node, Place, free_port, needs, obscured

pytestmark = pytest.mark.integration
Nodes = Callable[[str], Node]
MIB = 6


def test_made_on_one_node_and_fetched_by_another(node: Nodes) -> None:
    maker, other = node("maker"), node("other")
    instance = maker.call("make", mib=MIB)["instance"]
    assert maker.call("publish", check=True)["changed"], "check mode"
    assert maker.call("publish", check=True)["changed"], "and nothing was published by it"
    first = maker.call("publish")
    assert (first["reason"], first["changed"]) == (None, True), first
    assert first["moved_bytes"] > MIB << 20
    again = maker.call("publish")
    assert (again["changed"], again["version"], again["moved_bytes"]) == (False, first["version"], 0)

    assert other.call("fetch", check=True)["changed"], "check mode"
    assert other.call("state")["instance"] is None
    fetched = other.call("fetch")
    assert (fetched["reason"], fetched["version"]) == (None, first["version"]), fetched
    here, there = other.call("state"), maker.call("state")
    assert here["instance"] == there["instance"] == instance
    assert here["folders"] == [instance], "nothing else is left"
    assert here["pages_on_disk"] < (MIB + 1) << 20, "holes are holes"
    assert other.call("fetch")["changed"] is False
    # whoever has fetched it can publish it, and it is published already
    assert other.call("publish")["version"] == first["version"]


def test_what_is_kept_and_what_goes(node: Nodes) -> None:
    maker, other = node("maker"), node("other")
    versions = []
    for number in range(3):
        maker.call("make", mib=1, seed=number)
        published = maker.call("publish", keep=2)
        versions.append(published["version"])
        if number == 0:
            assert other.call("fetch")["version"] == versions[0]
    assert published["removed"] == [], "a node uses the oldest one"
    assert [version.partition("-")[0] for version in versions] == ["000001", "000002", "000003"]
    assert other.call("fetch", version=versions[2])["version"] == versions[2]
    assert maker.call("publish", keep=2)["removed"] == [versions[0]]
    assert maker.call("publish", keep=2)["changed"] is False

    assert other.call("forget")["changed"]
    assert other.call("forget")["changed"] is False
    gone = maker.call("forget", published=True)
    assert sorted(gone["removed"]) == versions[1:]
    assert other.call("fetch", version=versions[2])["reason"] == "images_missing"


def test_wrong_credentials_are_named_and_shown_nowhere(node: Nodes, place: Place, scratch: Path) -> None:
    if "credentials" not in place.given:
        pytest.skip("a folder needs none")
    maker = node("maker")
    maker.call("make", mib=1)
    right, wrong, other = Path(place.given["credentials"]).read_text(), scratch / "wrong", obscured("not-" + PASSWORD)
    if place.kind == "registry":
        known = json.loads(right)
        for entry in known["auths"].values():
            entry["auth"] = base64.b64encode(b"copier:wrong").decode()
        text = json.dumps(known)
    else:
        text = re.sub(r"^pass = .*$", f"pass = {other}", right, flags=re.MULTILINE).replace(
            f"secret_access_key = {PASSWORD}", "secret_access_key = wrong"
        )
    wrong.write_text(text)
    wrong.chmod(0o600)
    began = time.monotonic()
    refused = maker.call("publish", credentials=str(wrong))
    assert refused["reason"] == "remote_refused", refused
    assert time.monotonic() - began < 60
    assert other not in str(refused)
    assert PASSWORD not in str(refused)
    assert maker.call("publish")["reason"] is None


def test_no_command_has_a_secret_in_its_words(node: Nodes, place: Place) -> None:
    if place.kind == "folder":
        pytest.skip("no command is started for a folder")
    maker = node("maker")
    maker.call("make", mib=12)
    seen = set()
    with maker.begin("publish") as process:
        while process.poll() is None:
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    words = Path("/proc", pid, "cmdline").read_bytes().decode(errors="replace")
                except OSError:  # it has ended
                    continue
                if words.startswith(("rclone\0", "skopeo\0")) and "serve" not in words:
                    seen.add(words)
    assert seen, "at least one was seen"
    assert not [words for words in seen if PASSWORD in words]
    secret = [
        line.partition(" = ")[2]
        for line in Path(place.given.get("credentials", os.devnull)).read_text().splitlines()
        if line.startswith("pass")
    ]
    assert not [words for words in seen for value in secret if value in words]


def test_a_folder_needs_no_program(node: Nodes, place: Place) -> None:
    if place.kind != "folder":
        pytest.skip("others are reached through one")
    # /usr and /bin without the programs, as on a node that has none
    hidden = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "for each in rclone skopeo; do for at in /usr/bin /usr/local/bin; do "
        '[ ! -e "$at/$each" ] || mount --bind /dev/null "$at/$each"; done; done; exec "$@"',
        "sh",
    ]
    maker, other = node("maker"), node("other")
    maker.call("make", mib=2)
    assert Node(maker.root, place.given, hidden).call("publish")["reason"] is None
    assert Node(other.root, place.given, hidden).call("fetch")["reason"] is None
    assert other.call("state")["instance"] == maker.call("state")["instance"]


def test_nobody_there(node: Nodes, place: Place, scratch: Path) -> None:
    if place.port is None:
        pytest.skip("a folder is always there")
    maker = node("maker")
    maker.call("make", mib=1)
    port = str(free_port())
    if place.kind == "registry":
        given = {"registry": f"127.0.0.1:{port}/golden"}
    else:
        moved = scratch / "moved.conf"
        moved.write_text(Path(place.given["credentials"]).read_text().replace(str(place.port), port))
        moved.chmod(0o600)
        given = {"credentials": str(moved)}
    gone = maker.call("publish", **given)
    assert gone["reason"] == "remote_unreachable", gone
    assert "nobody answers" in gone["msg"]


def test_damage_at_the_remote_is_not_used(place: Place, node: Nodes) -> None:
    if place.folder is None or place.kind == "registry":
        pytest.skip("skopeo itself refuses a layer of another digest")
    maker, other = node("maker"), node("other")
    maker.call("make", mib=3)
    version = maker.call("publish")["version"]
    part = place.folder / "reference" / version / "part-00002"
    content = bytearray(part.read_bytes())
    content[77] ^= 1
    part.write_bytes(content)
    damaged = other.call("fetch")
    assert damaged["reason"] == "remote_failed"
    assert "part-00002" in damaged["msg"]
    assert other.call("state")["instance"] is None
    content[77] ^= 1
    part.write_bytes(content)
    fetched = other.call("fetch")
    assert fetched["reason"] is None
    assert fetched["moved_bytes"] < 3 << 20, "what had come whole is not fetched again"
    assert other.call("state")["instance"] is not None


def test_an_unfit_node_says_in_what_and_copies_nothing(node: Nodes, scratch: Path) -> None:
    maker, other = node("maker"), node("other")
    weights = scratch / "weights.bin"
    weights.write_bytes(b"w" * 5000)
    maker.call("make", mib=2, weights=str(weights))
    maker.call("publish", weights=str(weights))
    unfit = other.call("fetch", weights=str(weights), driver="590.44.01")
    assert unfit["reason"] == "checkpoint_unfit"
    assert "driver was none, is 590.44.01" in unfit["msg"]
    assert not (other.root / "golden" / "reference").exists()
    # another time of the same content is no difference, other content is one
    os.utime(weights, (1, 1))
    assert other.call("fetch", weights=str(weights))["reason"] is None
    last = node("last")
    weights.write_bytes(b"v" * 5000)
    os.utime(weights, (2, 2))
    differs = last.call("fetch", weights=str(weights))
    assert differs["reason"] == "checkpoint_unfit"
    assert str(weights) in differs["msg"]
    assert "command" in last.call("fetch")["msg"], "another description names the key"


def test_two_nodes_publish_one_name_at_once(node: Nodes) -> None:
    makers = [node("one"), node("two")]
    instances = [maker.call("make", mib=3, seed=number)["instance"] for number, maker in enumerate(makers)]
    calls = [maker.begin("publish") for maker in makers]
    for call in calls:
        said, errors = call.communicate(timeout=120)
        assert '"reason": null' in said, said + errors
    versions = [maker.call("publish")["version"] for maker in makers]
    assert len(set(versions)) == 2
    other = node("other")
    assert other.call("fetch")["reason"] is None
    assert other.call("state")["instance"] in instances


def test_a_call_that_is_killed_is_gone_on_with(node: Nodes) -> None:
    maker, other = node("maker"), node("other")
    maker.call("make", mib=48)
    for who, verb, sign in (
        (maker, "publish", "var/copies/reference.json"),
        (other, "fetch", "golden/reference/.incoming/*/images/pages-1.img"),
    ):
        with who.begin(verb) as process:
            while not list(who.root.glob(sign)):
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.002)
            os.killpg(process.pid, signal.SIGKILL)
        if who is other:
            assert other.call("state")["instance"] is None
        done = who.call(verb)
        assert done["reason"] is None, done
    assert other.call("state")["instance"] == maker.call("state")["instance"]


def test_encrypted(node: Nodes, scratch: Path) -> None:
    needs("age", "age")
    key = scratch / "age.key"
    made = subprocess.run(["age-keygen", "-o", key], check=True, capture_output=True, text=True)
    key.chmod(0o600)
    recipient = made.stderr.split()[-1]
    maker, other = node("maker"), node("other")
    maker.call("make", mib=2)
    assert maker.call("publish", age_recipients=[recipient])["reason"] is None
    assert maker.call("publish", age_recipients=[recipient])["changed"] is False
    blind = other.call("fetch")
    assert blind["reason"] == "bad_input"
    assert "copies_age_identity" in blind["msg"]
    wrong = scratch / "wrong.key"
    subprocess.run(["age-keygen", "-o", wrong], check=True, capture_output=True)
    wrong.chmod(0o600)
    assert other.call("fetch", age_identity=str(wrong))["reason"] == "remote_refused"
    assert other.call("fetch", age_identity=str(key))["reason"] is None
    assert other.call("state")["instance"] == maker.call("state")["instance"]


def signing_key(path: Path) -> tuple[str, str]:
    """A new key of ssh: the file of its secret half, and its public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return str(path), path.with_suffix(".pub").read_text().strip()


def test_only_what_somebody_trusted_has_signed_is_fetched(node: Nodes, scratch: Path) -> None:
    needs("ssh-keygen", "openssh-client")
    (key, public), (_, other_public) = signing_key(scratch / "maker-key"), signing_key(scratch / "other-key")
    maker, other = node("maker"), node("other")
    maker.call("make", mib=2)
    unsigned = maker.call("publish")["version"]
    refused = other.call("fetch", trusted_signers=[public])
    assert refused["reason"] == "copy_untrusted", refused
    assert "is not signed" in refused["msg"]

    signed = maker.call("publish", sign_key=key)
    assert (signed["reason"], signed["changed"]) == (None, True), "it was there, and not signed"
    assert signed["version"] != unsigned
    assert maker.call("publish", sign_key=key)["changed"] is False
    refused = other.call("fetch", trusted_signers=[other_public])
    assert refused["reason"] == "copy_untrusted", refused
    assert "signed by nobody whom this node trusts" in refused["msg"]
    assert not (other.root / "golden" / "reference").exists()
    fetched = other.call("fetch", trusted_signers=[other_public, public])
    assert (fetched["reason"], fetched["version"]) == (None, signed["version"]), fetched
    assert other.call("state")["instance"] == maker.call("state")["instance"]
    # whoever trusts nobody in particular fetches it as before
    assert node("third").call("fetch")["reason"] is None


def test_a_document_that_was_swapped_or_put_under_a_newer_name_is_refused(
    place: Place, node: Nodes, scratch: Path
) -> None:
    if place.folder is None or place.kind == "registry":
        pytest.skip("files of a registry are not changed by hand")
    key, public = signing_key(scratch / "maker-key")
    maker = node("maker")
    versions = []
    for number in range(2):
        maker.call("make", mib=1, seed=number)
        versions.append(place.folder / "reference" / maker.call("publish", sign_key=key)["version"])
    old, new = versions
    kept = (new / "golden.json").read_bytes()

    def fetch() -> Given:
        return Node(scratch / "fetcher", place.given).call("fetch", trusted_signers=[public])

    # a document of somebody else's, with a digest of its own that is right, under the signature that was there
    changed = json.loads(kept)
    changed["host"] = "somebody"
    (new / "golden.json").write_text(
        json.dumps(sealed({name: value for name, value in changed.items() if name != DIGEST}))
    )
    assert fetch()["reason"] == "copy_untrusted"
    # the document of the older publication with its own signature: signed by the right one, and not this one
    for name in ("golden.json", "golden.json.sig"):
        (new / name).write_bytes((old / name).read_bytes())
    replayed = fetch()
    assert replayed["reason"] == "remote_failed", replayed
    assert f"is that of {old.name}" in replayed["msg"]
    # a whole copy of the older publication under a newer name
    newest = old.with_name("000009" + old.name[6:])
    shutil.copytree(old, newest)
    replayed = fetch()
    assert replayed["reason"] == "remote_failed", replayed
    assert f"is that of {old.name}" in replayed["msg"]
    assert not (scratch / "fetcher" / "golden" / "reference").exists()


def test_a_key_that_cannot_sign_is_named_and_nothing_is_committed(node: Nodes, scratch: Path) -> None:
    key = scratch / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", key], check=True)
    maker = node("maker")
    maker.call("make", mib=1)
    failed = maker.call("publish", sign_key=str(key))
    assert failed["reason"] == "bad_input", failed
    assert "without a passphrase" in failed["msg"]
    assert node("other").call("fetch")["reason"] == "images_missing"
    wrong = node("other").call("fetch", trusted_signers=[key.read_text()])
    assert wrong["reason"] == "bad_input"
    assert "OPENSSH" not in wrong["msg"], "it may be a secret key"
