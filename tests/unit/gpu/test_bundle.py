# SPDX-License-Identifier: GPL-3.0-or-later
"""Packing, verifying and unpacking a bundle, with real archives; and what goes into a tree of wheels."""

from __future__ import annotations

import io
import platform
import random
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

FILES = Path(__file__).parents[3] / "roles" / "bundle" / "files"
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


def test_a_member_outside_the_folder_is_refused(packed: Path, tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar.xz"
    with tarfile.open(archive, "w:xz") as out:
        member = tarfile.TarInfo("../escaped")
        out.addfile(member, io.BytesIO(b""))
    (tmp_path / "into").mkdir()
    with pytest.raises(bundles.BundleError, match="outside"):
        bundles.extract([archive], tmp_path / "into")
    assert not (tmp_path / "escaped").exists()


def elf(path: Path, machine: int, *versions: str) -> None:
    """Write what is read of a program: its header, and the versions of symbols that it asks for."""
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
    """Write a small but real wheel."""
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
