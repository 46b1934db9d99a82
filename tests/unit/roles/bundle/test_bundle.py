# SPDX-License-Identifier: GPL-3.0-or-later
"""Packing, verifying and unpacking a bundle, with real archives; and what goes into a tree of wheels."""

from __future__ import annotations

import io
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from project import ROOT

FILES = ROOT / "roles" / "bundle" / "files"
sys.path.insert(0, str(FILES))

import gpuckpt_bundle as bundles  # noqa: E402
import wheel_tree as trees  # noqa: E402

PROFILE = trees.Profile(
    requirement="server==1",
    python="3.12",
    glibc_minor=39,
    provided=frozenset({"httpx", "torch"}),
    left_out=frozenset({"kernels"}),
    drop=("*.a", "server/tests/*"),
)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A bundle with one component in several parts of 1 MiB."""
    source = tmp_path / "source"
    (source / "bin").mkdir(parents=True)
    (source / "bin" / "tool").write_bytes(b"#!/bin/sh\n")
    (source / "bin" / "tool").chmod(0o755)
    (source / "data").write_bytes(bytes(index * 7919 % 251 for index in range(1000)) + _noise(3 << 20))
    (source / "link").symlink_to("data")
    bundles.pack(tmp_path / "bundle", "thing", source, part_mib=1)
    return tmp_path / "bundle"


def _noise(size: int) -> bytes:
    return random.Random(1).randbytes(size)


def test_a_component_comes_back_as_it_was(packed: Path, tmp_path: Path) -> None:
    assert len(list((packed / "thing").iterdir())) > 2
    dest = tmp_path / "dest"
    assert bundles.unpack(packed, "thing", dest) is True
    assert (dest / "data").read_bytes() == (tmp_path / "source" / "data").read_bytes()
    assert (dest / "bin" / "tool").stat().st_mode & 0o777 == 0o755
    assert (dest / "link").readlink() == Path("data")
    assert bundles.unpack(packed, "thing", dest) is False


def test_every_bad_part_is_named(packed: Path, tmp_path: Path) -> None:
    first, second, *_ = sorted((packed / "thing").iterdir())
    first.write_bytes(first.read_bytes()[:-1] + b"\0")
    second.unlink()
    with pytest.raises(bundles.BundleError) as caught:
        bundles.unpack(packed, "thing", tmp_path / "dest")
    assert f"{first.name} has another digest" in str(caught.value)
    assert f"{second.name} is missing" in str(caught.value)
    assert not (tmp_path / "dest").exists()


def test_an_older_tree_is_replaced_whole(packed: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    bundles.unpack(packed, "thing", dest)
    source = tmp_path / "newer"
    source.mkdir()
    (source / "other").write_bytes(b"new")
    bundles.pack(packed, "thing", source, part_mib=1)
    assert bundles.unpack(packed, "thing", dest) is True
    assert sorted(path.name for path in dest.iterdir()) == [bundles.STAMP, "other"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".dest")) == []


OVERLAY = """
mount -t overlay -o lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work overlay $1/root
$2 $3 unpack $4 thing $1/root/tree
cat $1/root/tree/.bundle-digest
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root mounts an overlay")
def test_a_tree_in_a_lower_layer_of_an_overlay_is_replaced(packed: Path, tmp_path: Path) -> None:
    """It cannot be renamed there (EXDEV)."""
    for name in ("lower/tree", "upper", "work", "root"):
        (tmp_path / "o" / name).mkdir(parents=True)
    (tmp_path / "o/lower/tree" / bundles.STAMP).write_text("older\n")
    command = [
        "unshare",
        "--mount",
        "bash",
        "-euc",
        OVERLAY,
        "bash",
        tmp_path / "o",
        sys.executable,
        bundles.__file__,
        packed,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "older" not in done.stdout


def test_a_foreign_folder_is_left_alone(packed: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "mine").write_bytes(b"mine")
    with pytest.raises(bundles.BundleError, match="no bundle put there"):
        bundles.unpack(packed, "thing", dest)
    assert (dest / "mine").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("text", "says"), [(None, "does not exist"), ("{", "is not JSON"), ('{"schema_version": 9}', "schema 9")]
)
def test_a_manifest_that_cannot_be_used(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / bundles.MANIFEST).write_text(text)
    with pytest.raises(bundles.BundleError, match=says):
        bundles.verify(tmp_path, [])


def test_an_unknown_component_names_those_there_are(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(bundles.BundleError, match="only thing"):
        bundles.unpack(packed, "other", tmp_path / "dest")


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """A member of an archive, with rights and an owner that unpacking must not hand on."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.uid, info.gid = kind, target, 0o6777, 65534, 65534
    return info


def bundle_of(folder: Path, *members: tarfile.TarInfo) -> Path:
    """A bundle whose manifest is right, with one component of these members."""
    (folder / "hostile" / "thing").mkdir(parents=True)
    part = folder / "hostile" / "thing" / "thing.tar.xz.00"
    with tarfile.open(part, "w:xz", format=tarfile.PAX_FORMAT) as out:
        for info in members:
            info.size = 4 if info.type == tarfile.REGTYPE else 0
            out.addfile(info, io.BytesIO(b"data"))
    entry = {"file": "thing/thing.tar.xz.00", "bytes": part.stat().st_size, "sha256": bundles.sha256_of(part)}
    manifest = {"schema_version": 1, "components": {"thing": {"digest": "0" * 64, "parts": [entry]}}}
    bundles.write_manifest(folder / "hostile", manifest)
    return folder / "hostile"


DIR, SYM, LNK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([member("../escaped")], "is not in a folder"),
        ([member("/tmp/escaped")], "is not in a folder"),
        ([member("a", DIR), member("a/../../escaped")], "is not in a folder"),
        ([member("a/escaped")], "is not in a folder"),
        ([member("a", SYM, "."), member("a/escaped")], "is not in a folder"),
        ([member("a", SYM, "/etc")], "leads outside"),
        ([member("a", SYM, "..")], "leads outside"),
        ([member("a", DIR), member("a/b", SYM, "../..")], "leads outside"),
        ([member("a", DIR), member("a/up", SYM, ".."), member("a/b", SYM, "up/../escaped")], "leads outside"),
        ([member("a", LNK, "../escaped"), member("a")], "is neither"),
        ([member("a"), member("b", LNK, "a")], "is neither"),
        ([member("a"), member("a")], "comes twice"),
        ([member("a", SYM, "b"), member("a")], "comes twice"),
        ([member("a", tarfile.CHRTYPE)], "is neither"),
        ([member("a", tarfile.BLKTYPE)], "is neither"),
        ([member("a", tarfile.FIFOTYPE)], "is neither"),
    ],
)
def test_what_no_bundle_of_ours_holds_is_refused(tmp_path: Path, members: list[tarfile.TarInfo], says: str) -> None:
    (tmp_path / "escaped").write_bytes(b"mine")
    before = set(tmp_path.iterdir())
    hostile = bundle_of(tmp_path, *members)
    with pytest.raises(bundles.BundleError, match=says):
        bundles.unpack(hostile, "thing", tmp_path / "dest")
    assert set(tmp_path.iterdir()) - before == {hostile}
    assert (tmp_path / "escaped").read_bytes() == b"mine"


def test_rights_and_owners_are_ours(tmp_path: Path) -> None:
    hostile = bundle_of(tmp_path, member("a", DIR), member("a/b"), member("a/link", SYM, "../a/b"))
    dest = tmp_path / "dest"
    bundles.unpack(hostile, "thing", dest)
    assert (dest / "a/link").read_bytes() == b"data"
    for path in (dest / "a", dest / "a/b"):
        assert (path.stat().st_mode & 0o7777, path.stat().st_uid) == (0o755, os.geteuid())


def test_what_could_not_be_unpacked_is_not_packed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "one").write_bytes(b"same")
    os.link(source / "one", source / "two")
    bundles.pack(tmp_path / "bundle", "thing", source, part_mib=1)
    bundles.unpack(tmp_path / "bundle", "thing", tmp_path / "dest")
    assert [(tmp_path / "dest" / name).read_bytes() for name in ("one", "two")] == [b"same", b"same"]
    (source / "out").symlink_to("/etc/passwd")
    with pytest.raises(bundles.BundleError, match="leads outside, which unpack would refuse"):
        bundles.pack(tmp_path / "bundle", "thing", source, part_mib=1)


def test_a_part_that_is_swapped_together_with_the_manifest(packed: Path, tmp_path: Path) -> None:
    told = bundles.verify(packed, []), bundles.sha256_of(packed / bundles.MANIFEST)
    assert bundles.verify(packed, [], told[1]) == told[0]
    assert bundles.unpack(packed, "thing", tmp_path / "dest", told[1].upper())
    swapped = bundle_of(tmp_path, member("evil"))
    bundles.verify(swapped, [])
    for attempt in (
        lambda: bundles.verify(swapped, [], told[1]),
        lambda: bundles.unpack(swapped, "thing", tmp_path / "other", told[1]),
    ):
        with pytest.raises(bundles.BundleError, match="is not the bundle that you were told of"):
            attempt()
    assert not (tmp_path / "other").exists()


def test_a_part_that_is_exchanged_after_it_was_verified(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = bundle_of(tmp_path, member("evil")) / "thing" / "thing.tar.xz.00"
    parts = sorted((packed / "thing").iterdir())
    verify = bundles.verify

    def verify_and_exchange(*arguments: object) -> object:
        verified = verify(*arguments)
        parts[0].write_bytes(evil.read_bytes())
        for part in parts[1:]:
            part.write_bytes(b"")
        return verified

    monkeypatch.setattr(bundles, "verify", verify_and_exchange)
    with pytest.raises(bundles.BundleError, match="was exchanged while it was read"):
        bundles.unpack(packed, "thing", tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


def test_every_damage_of_the_manifest_is_one_line(packed: Path, tmp_path: Path) -> None:
    """Each byte in turn exchanged, and the file cut off at each: never a traceback, and never another part."""
    manifest = packed / bundles.MANIFEST
    whole = manifest.read_bytes()
    good = json.loads(whole)["components"]["thing"]
    for place in range(0, len(whole), 7):
        for damaged in (whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :], whole[:place]):
            manifest.write_bytes(damaged)
            try:
                entry = bundles.read_manifest(packed)["components"].get("thing", good)
            except bundles.BundleError:
                continue
            assert all(len(Path(part["file"]).parts) == 2 for part in entry["parts"])


@pytest.mark.parametrize(
    "components",
    [
        None,
        [],
        {"thing": None},
        {"../thing": {"digest": "0" * 64, "parts": []}},
        {"thing": {"digest": "0" * 64}},
        {"thing": {"digest": 0, "parts": []}},
        {"thing": {"digest": "0" * 64, "parts": [{"file": "../../etc/passwd", "bytes": 1, "sha256": "0" * 64}]}},
        {"thing": {"digest": "0" * 64, "parts": [{"file": "thing/..", "bytes": 1, "sha256": "0" * 64}]}},
        {"thing": {"digest": "0" * 64, "parts": [], "needs": {"glibc": 2}}},
    ],
)
def test_a_manifest_that_is_not_as_pack_writes_it(
    tmp_path: Path, components: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles.write_manifest(tmp_path, {"schema_version": 1, "components": components})
    monkeypatch.setattr(sys, "argv", ["gpuckpt_bundle.py", "verify", str(tmp_path)])
    assert bundles.main() == 1
    assert "is damaged" in capsys.readouterr().err


def elf(path: Path, machine: int, *versions: str) -> None:
    """Writes what is read of a program: its header, and the versions of symbols that it asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    symbols = b"".join(b"\0" + version.encode() for version in versions) + b"\0"
    path.write_bytes(b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little") + symbols)


X86_64, AARCH64, CUDA = 0x3E, 0xB7, 0xBE


def test_what_a_component_needs_is_read_off_its_programs(tmp_path: Path) -> None:
    elf(tmp_path / "tree/bin/tool", X86_64, "GLIBC_2.9", "GLIBC_2.34")
    elf(tmp_path / "tree/a/_a.cpython-312-x86_64-linux-gnu.so", X86_64, "GLIBC_2.5")
    elf(tmp_path / "tree/a/kernel.cubin", CUDA)
    (tmp_path / "tree/notes").write_bytes(b"\0GLIBC_2.99\0")
    needs = {"machine": "x86_64", "glibc": "2.34", "python": "3.12"}
    assert bundles.pack(tmp_path / "bundle", "thing", tmp_path / "tree", part_mib=1)["needs"] == needs
    assert bundles.read_manifest(tmp_path / "bundle")["components"]["thing"]["needs"] == needs


def test_what_programs_contradict_each_other_in_is_not_needed(tmp_path: Path) -> None:
    elf(tmp_path / "_a.cpython-312-x86_64-linux-gnu.so", X86_64)
    elf(tmp_path / "_a.cpython-313-aarch64-linux-gnu.so", AARCH64)
    assert bundles.needs_of(tmp_path) == {"glibc": "2.0"}
    assert bundles.needs_of(FILES) == {}


def test_a_real_program_fits_the_machine_that_runs_it(tmp_path: Path) -> None:
    shutil.copy(sys.executable, tmp_path)
    manifest = {"components": {"python": {"needs": bundles.needs_of(tmp_path)}}}
    machine, glibc = platform.machine(), platform.libc_ver()[1]
    assert manifest["components"]["python"]["needs"]["machine"] == machine
    assert bundles.unfit(manifest, ["python"], machine, glibc, "3.12") == []
    assert len(bundles.unfit(manifest, ["python"], machine, "2.1", "3.12")) == 1


@pytest.mark.parametrize(
    ("node", "reasons"),
    [
        (("x86_64", "2.34", "3.12"), []),
        (("x86_64", "2.100", "3.12"), []),
        (("x86_64", "2.9", "3.12"), ["tree needs glibc 2.34, the node has 2.9"]),
        (("aarch64", "2.36", "3.12"), ["tree is for x86_64, the node is aarch64"]),
        (
            ("x86_64", "0", "3.11"),
            ["tree needs glibc 2.34, the node has 0", "tree is for Python 3.12, the node's is 3.11"],
        ),
    ],
)
def test_a_node_that_a_component_is_not_for(node: tuple[str, str, str], reasons: list[str]) -> None:
    needs = {"machine": "x86_64", "glibc": "2.34", "python": "3.12"}
    manifest = {"components": {"tree": {"needs": needs}, "older": {"digest": "of a bundle that notes no needs"}}}
    found = bundles.unfit(manifest, ["tree", "older"], *node)
    assert [reason.partition(":")[0] for reason in found] == reasons


def wheel(folder: Path, name: str, version: str, *needs: str, files: dict[str, bytes] | None = None) -> None:
    """Writes a small but real wheel."""
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", metadata)
        for path, content in (files or {f"{name}/__init__.py": b""}).items():
            archive.writestr(path, content)


def test_a_tree_holds_what_the_profile_keeps(tmp_path: Path) -> None:
    files = {
        "server/__init__.py": b"",
        "server/big.a": b"",
        "server/tests/t.py": b"",
        "server-1.data/purelib/extra.py": b"1",
    }
    wheel(tmp_path, "server", "1", "torch>=2", "kernels", "httpx2", files=files)
    wheel(tmp_path, "httpx2", "2.16")
    trees.make_tree(PROFILE, tmp_path, tmp_path / "tree")
    found = {str(path.relative_to(tmp_path / "tree")) for path in (tmp_path / "tree").rglob("*.*") if path.is_file()}
    assert {"server/__init__.py", "extra.py", "httpx2/__init__.py"} <= found
    assert not found & {"server/big.a", "server/tests/t.py"}


@pytest.mark.parametrize(
    ("need", "lost"),
    [("httpx2", True), ("helper>=2", True), ("helper>=1", False), ('windows-only; sys_platform == "win32"', False),
     ('old; python_version < "3.11"', False), ("Torch", False), ('extra-thing; extra == "dev"', False)],
)  # fmt: skip
def test_a_requirement_lost_in_trimming_stops_the_tree(tmp_path: Path, need: str, lost: bool) -> None:
    wheel(tmp_path, "server", "1", need)
    wheel(tmp_path, "helper", "1.5")
    if not lost:
        trees.make_tree(PROFILE, tmp_path, tmp_path / "tree")
        return
    with pytest.raises(trees.TreeError, match=need.split(">")[0]):
        trees.make_tree(PROFILE, tmp_path, tmp_path / "tree")


@pytest.mark.parametrize("path", ["../outside.py", "/tmp/outside.py", "server-1.data/purelib/../../outside.py"])
def test_a_wheel_that_leads_outside_is_refused(tmp_path: Path, path: str) -> None:
    wheel(tmp_path, "server", "1", files={path: b""})
    with pytest.raises(trees.TreeError, match="leads outside"):
        trees.make_tree(PROFILE, tmp_path, tmp_path / "trees" / "tree")
    assert not list(tmp_path.rglob("outside.py"))


def test_lines_of_a_lock_file_that_hold_on_the_node() -> None:
    text = (
        "# made by a compiler\n"
        'server==1 ; python_version >= "3.12" \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n    # via something\n'
        'server==0 ; python_version < "3.12" \\\n    --hash=sha256:cc\n'
        "torch==2 \\\n    --hash=sha256:dd\n"
    )
    assert trees.wanted_lines(text, PROFILE) == ["server==1 --hash=sha256:aa --hash=sha256:bb"]


def test_the_committed_lock_fits_its_profile() -> None:
    profile = trees.Profile.read(FILES / "trees" / "vllm.toml")
    text = (FILES / "trees" / "vllm.lock").read_text()
    names = [line.split("==")[0] for line in text.splitlines() if not line.startswith("#")]
    assert profile.requirement in {line.split(" --hash")[0] for line in text.splitlines()}
    assert [name for name in names if not profile.keeps(name)] == []
    assert len(trees.wanted_lines(text, profile)) == len(names)
