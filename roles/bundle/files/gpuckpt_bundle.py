#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pack, verify and unpack an offline bundle. Standard library only: it runs on a node that has nothing else.

A bundle is a folder with `bundle.json` and one folder per component; a component is one tar.xz, cut into parts:

    gpuckpt_bundle.py pack   BUNDLE NAME FOLDER   add FOLDER's contents as component NAME
    gpuckpt_bundle.py verify BUNDLE [NAME ...]    compare every part with its digest; print the bundle's own
    gpuckpt_bundle.py unpack BUNDLE NAME DEST     verify, unpack next to DEST, then move into place
    gpuckpt_bundle.py unfit  BUNDLE NAME ... --node MACHINE GLIBC PYTHON   print why components do not fit a node
    gpuckpt_bundle.py list   BUNDLE               print digest and parts of each component, and what it needs of a node

`unpack` leaves the digest in DEST/.bundle-digest and does nothing when it is already there.

bundle.json holds the SHA-256 of every part, so its own SHA-256 stands for the whole bundle. Whoever can exchange a part can
exchange bundle.json, too. `--digest SHA256`, brought by another route than the bundle, makes verify, unpack and unfit refuse
that.
What is unpacked is data: files, folders, and links within the tree, with rights of ours and the owner who runs this.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import io
import json
import lzma
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
STAMP = ".bundle-digest"
BLOCK = 1 << 20
SHA256 = re.compile(r"[0-9a-f]{64}")
# the names of components and of their parts
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
ELF_MACHINES = {0x3E: "x86_64", 0xB7: "aarch64"}
C_LIBRARY_VERSION = re.compile(rb"\0GLIBC_2\.(\d+)")
EXTENSION_MODULE = re.compile(r"\.cpython-3(\d+)-.*\.so$")


class BundleError(Exception):
    """Something the user must fix; the text says what and how."""


def sha256_of(path: Path) -> str:
    """Returns the hexadecimal SHA-256 digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(bundle: Path, digest: str = "") -> dict[str, Any]:
    """Returns the bundle's manifest.

    :param digest: the SHA-256 that bundle.json must have; empty for any
    :raises BundleError: when it is missing, another than `digest` says, not JSON, or of another schema
    """
    path = bundle / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path} does not exist; name the folder that bundle.yml wrote") from None
    found = hashlib.sha256(content).hexdigest()
    if digest and found != digest.lower():
        raise BundleError(
            f"{path} has the SHA-256 {found}, and {digest} was asked for; this is not the bundle that you were told of, "
            "so do not use it unless whoever made it confirms the first"
        )
    try:
        manifest: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}); copy the bundle again") from None
    schema = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if schema != SCHEMA_VERSION:
        raise BundleError(f"{path} has schema {schema}, this program reads {SCHEMA_VERSION}; make the bundle again")
    if wrong := wrong_entries(manifest):
        raise BundleError(f"{path} is damaged ({wrong}); copy the bundle again")
    return manifest


def wrong_entries(manifest: dict[str, Any]) -> str:
    """Says what in a manifest is not as `pack` writes it; an empty string is good."""
    components = manifest.get("components")
    if not isinstance(components, dict):
        return "it lists no components"
    for name, entry in components.items():
        if not NAME.fullmatch(name) or not isinstance(entry, dict):
            return f"{name!r} is no component"
        parts, needs = entry.get("parts"), entry.get("needs", {})
        if not is_digest(entry.get("digest")) or not isinstance(parts, list) or not all(map(is_part, parts)):
            return f"the parts of {name} are not described"
        if not isinstance(needs, dict) or not all(isinstance(value, str) for value in needs.values()):
            return f"the needs of {name} are not described"
    return ""


def is_digest(value: object) -> bool:
    """Says whether a value is a SHA-256 digest."""
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


def is_part(part: object) -> bool:
    """Says whether a value describes a part: a file in a folder of the bundle, its size and its digest."""
    if not isinstance(part, dict) or not isinstance(part.get("file"), str) or not isinstance(part.get("bytes"), int):
        return False
    names = part["file"].split("/")
    return len(names) == 2 and all(map(NAME.fullmatch, names)) and is_digest(part.get("sha256"))


def write_manifest(bundle: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest in one step."""
    scratch = bundle / (MANIFEST + ".new")
    scratch.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    scratch.replace(bundle / MANIFEST)


def component(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the manifest's entry `name`.

    :raises BundleError: when the bundle does not hold it
    """
    try:
        entry: dict[str, Any] = manifest["components"][name]
        return entry
    except KeyError:
        held = ", ".join(sorted(manifest["components"])) or "nothing"
        raise BundleError(f"the bundle holds no component {name!r}, only {held}") from None


def tree_digest(folder: Path) -> str:
    """Returns a digest of names, modes and contents below `folder`, independent of times and owners."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            kind = "l" + os.readlink(path)
        elif path.is_dir():
            kind = "d"
        else:
            kind = f"{path.stat().st_mode & 0o111:o} {sha256_of(path)}"
        digest.update(f"{path.relative_to(folder)}\0{kind}\n".encode())
    return digest.hexdigest()


def oldest_c_library(contents: Iterable[bytes]) -> str:
    """Returns the oldest glibc that has all symbol versions which these ELF files ask for, as 2.34."""
    minors = [int(minor) for content in contents for minor in C_LIBRARY_VERSION.findall(content)]
    return f"2.{max(minors, default=0)}"


def elf_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yields name and contents of each ELF file below `folder`."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as stream:
            head = stream.read(20)
            if head.startswith(b"\x7fELF"):
                yield path.name, head + stream.read()


def needs_of(folder: Path) -> dict[str, str]:
    """Returns what programs and libraries below `folder` need of a node: its machine, the oldest glibc that will do, its Python.

    What they do not tell, or not with one voice, is left out.
    """
    machines, pythons, versions = set(), set(), []
    for name, content in elf_files(folder):
        machines.add(ELF_MACHINES.get(int.from_bytes(content[18:20], "little"), ""))
        versions.append(oldest_c_library([content]))
        if found := EXTENSION_MODULE.search(name):
            pythons.add(f"3.{found[1]}")
    needs = {}
    if len(machines - {""}) == 1:
        needs["machine"] = max(machines)
    if versions:
        needs["glibc"] = max(versions, key=version_key)
    if len(pythons) == 1:
        needs["python"] = pythons.pop()
    return needs


def version_key(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version, for comparison."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def unfit(manifest: dict[str, Any], names: list[str], machine: str, glibc: str, python: str) -> list[str]:
    """Says why each of the components does not fit a node; an empty list is good.

    A component that was packed before needs were noted fits.
    """
    reasons = []
    for name in names:
        needs = {"machine": machine, "glibc": "0", "python": python, **component(manifest, name).get("needs", {})}
        if needs["machine"] != machine:
            reasons.append(f"{name} is for {needs['machine']}, the node is {machine}: leave the node out")
        if version_key(glibc) < version_key(needs["glibc"]):
            fix = "make it on the node's distribution or an older one"
            reasons.append(f"{name} needs glibc {needs['glibc']}, the node has {glibc}: {fix}")
        if needs["python"] != python:
            fix = "name another one in inference_server_vllm_python"
            reasons.append(f"{name} is for Python {needs['python']}, the node's is {python}: {fix}")
    return reasons


def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Takes time and owner out of an archive member."""
    info.mtime = info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


class Splitter(io.RawIOBase):
    """A file that writes itself as numbered parts of at most `part_bytes`."""

    def __init__(self, folder: Path, stem: str, part_bytes: int) -> None:
        self.folder, self.stem, self.part_bytes = folder, stem, part_bytes
        self.paths: list[Path] = []
        self._sink: io.BufferedWriter | None = None
        self._room = 0

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data)
        size = view.nbytes
        while view:
            if self._room == 0:
                self._next()
            assert self._sink is not None
            piece = view[: self._room]
            self._sink.write(piece)
            self._room -= len(piece)
            view = view[len(piece) :]
        return size

    def _next(self) -> None:
        if self._sink is not None:
            self._sink.close()
        path = self.folder / f"{self.stem}.{len(self.paths):02d}"
        self.paths.append(path)
        self._sink = path.open("wb")
        self._room = self.part_bytes

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()
        super().close()


def compress(folder: Path, sink: IO[bytes]) -> None:
    """Writes `folder` as tar.xz to `sink`, on all cores where the xz command exists.

    That command's own level is 6, too; its variable XZ_OPT names another.
    """
    xz = shutil.which("xz")
    if xz is None:
        with lzma.open(sink, "wb", preset=6) as packed:
            add_all(folder, packed)
        return
    with tempfile.TemporaryFile() as scratch:
        with subprocess.Popen([xz, "-T0", "-c"], stdin=subprocess.PIPE, stdout=scratch) as child:
            assert child.stdin is not None
            add_all(folder, child.stdin)
            child.stdin.close()
        if child.returncode:
            raise BundleError(f"xz failed with status {child.returncode}; is the disk full?")
        scratch.seek(0)
        shutil.copyfileobj(scratch, sink, BLOCK)


def add_all(folder: Path, stream: IO[bytes]) -> None:
    """Writes everything below `folder` to `stream` as tar, in sorted order, so that equal trees give equal archives."""
    folders = {PurePosixPath(".")}
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            name = PurePosixPath(path.relative_to(folder))
            # a file with two names comes as two files: a bundle holds no hard links
            archive.inodes.clear()  # type: ignore[attr-defined]  # typeshed leaves it out
            member = archive.gettarinfo(path, str(name))
            if wrong := wrong_member(member, name, folders) if member else "is a socket":
                raise BundleError(f"{path} {wrong}, which unpack would refuse; remove it")
            if member.isdir():
                folders.add(name)
            with path.open("rb") if member.isreg() else io.BytesIO() as content:
                archive.addfile(plain(member), content)


def pack(bundle: Path, name: str, folder: Path, part_mib: int) -> dict[str, Any]:
    """Adds the contents of `folder` to the bundle as component `name`; returns its entry in the manifest."""
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder")
    bundle.mkdir(parents=True, exist_ok=True)
    if (bundle / MANIFEST).exists():
        manifest = read_manifest(bundle)
    else:
        manifest = {"schema_version": SCHEMA_VERSION, "machine": platform.machine(), "components": {}}
    digest = tree_digest(folder)
    target = bundle / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    splitter = Splitter(target, f"{name}.tar.xz", part_mib << 20)
    with io.BufferedWriter(splitter, BLOCK) as sink:
        compress(folder, sink)
    parts = [
        {"file": f"{name}/{path.name}", "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in splitter.paths
    ]
    entry = {"digest": digest, "parts": parts, "needs": needs_of(folder)}
    manifest["components"][name] = entry
    manifest["made_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_manifest(bundle, manifest)
    return entry


def wrong_parts(bundle: Path, entry: dict[str, Any]) -> list[str]:
    """Says of every part of a component what is wrong with it; an empty list is good."""
    wrong = []
    for part in entry["parts"]:
        path = bundle / part["file"]
        if not path.is_file():
            wrong.append(f"{part['file']} is missing")
        elif path.stat().st_size != part["bytes"]:
            wrong.append(f"{part['file']} has {path.stat().st_size} bytes instead of {part['bytes']}")
        elif sha256_of(path) != part["sha256"]:
            wrong.append(f"{part['file']} has another digest than {MANIFEST} says")
    return wrong


def verify(bundle: Path, names: list[str], digest: str = "") -> dict[str, Any]:
    """Compares every part of the named components (all, if none is named) with the manifest, which is returned.

    :raises BundleError: naming every part that is missing or differs
    """
    manifest = read_manifest(bundle, digest)
    wrong = []
    for name in names or sorted(manifest["components"]):
        wrong += wrong_parts(bundle, component(manifest, name))
    if wrong:
        raise BundleError("copy these parts again: " + "; ".join(wrong))
    return manifest


class Parts(io.RawIOBase):
    """The parts of an archive, read as one file. Reading raises BundleError when one was exchanged since it was verified."""

    def __init__(self, bundle: Path, parts: list[dict[str, Any]]) -> None:
        self._streams = self._open(bundle, parts)
        self._current = next(self._streams, None)

    def _open(self, bundle: Path, parts: list[dict[str, Any]]) -> Iterator[io.BufferedReader]:
        for part in parts:
            self._digest = hashlib.sha256()
            with (bundle / part["file"]).open("rb") as stream:
                yield stream
            if self._digest.hexdigest() != part["sha256"]:
                raise BundleError(f"{part['file']} was exchanged while it was read; find out who writes to {bundle}")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while self._current is not None:
            count = self._current.readinto(buffer)
            if count:
                self._digest.update(memoryview(buffer)[:count])
                return count
            self._current = next(self._streams, None)
        return 0


def extract(bundle: Path, parts: list[dict[str, Any]], folder: Path) -> None:
    """Unpacks the archive that `parts` hold into `folder`, which is empty.

    :raises BundleError: on a member that `pack` would not have written, before anything of it is
    """
    joined = io.BufferedReader(Parts(bundle, parts), BLOCK)
    folders = {PurePosixPath(".")}
    with lzma.open(joined) as plain_bytes, tarfile.open(fileobj=plain_bytes, mode="r|") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if wrong := wrong_member(member, path, folders):
                raise BundleError(f"{member.name!r} {wrong}; this is no bundle of ours, do not use it")
            write_member(archive, member, folder / path)
            if member.isdir():
                folders.add(path)
        while plain_bytes.read(BLOCK):
            pass
    while joined.read(BLOCK):
        pass


def wrong_member(member: tarfile.TarInfo, path: PurePosixPath, folders: set[PurePosixPath]) -> str:
    """Says why a member of an archive is not unpacked; an empty string is good.

    `folders` are those that the archive made before. A member whose parent is one of them, and no link, lies within the tree.
    """
    if path.is_absolute() or not path.parts or ".." in path.parts or path.parent not in folders:
        return "is not in a folder of its archive"
    if member.issym():
        target = PurePosixPath(member.linkname)
        upwards = [part == ".." for part in target.parts]
        # only at its beginning, where the folders are known to be no links
        if target.is_absolute() or upwards != sorted(upwards, reverse=True) or sum(upwards) >= len(path.parts):
            return "is a link that leads outside"
    elif not member.isdir() and member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return "is neither a file nor a folder nor a symbolic link"
    return ""


def write_member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Writes a member that is not there yet, with rights of ours.

    :raises BundleError: when it is there: a bundle holds every name once
    """
    try:
        if member.isdir():
            path.mkdir()
            path.chmod(0o755)
        elif member.issym():
            path.symlink_to(member.linkname)
        else:
            source = archive.extractfile(member)
            assert source is not None
            with path.open("xb") as out:
                shutil.copyfileobj(source, out, BLOCK)
                os.fchmod(out.fileno(), 0o755 if member.mode & 0o111 else 0o644)
    except FileExistsError:
        raise BundleError(f"{member.name!r} comes twice; this is no bundle of ours, do not use it") from None


def unpack(bundle: Path, name: str, dest: Path, digest: str = "") -> bool:
    """Verifies component `name` and puts its contents at `dest`; returns whether anything changed.

    An older tree at `dest` is replaced in one step; a foreign folder is refused.

    :raises BundleError: on a bad part, or when `dest` holds something that is not from a bundle
    """
    entry = component(read_manifest(bundle, digest), name)
    stamp = dest / STAMP
    if stamp.is_file() and stamp.read_text().strip() == entry["digest"]:
        return False
    if dest.exists() and not stamp.is_file() and any(dest.iterdir()):
        raise BundleError(f"{dest} holds files that no bundle put there; move them away")
    entry = component(verify(bundle, [name], digest), name)
    dest.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent)).resolve()
    try:
        extract(bundle, entry["parts"], scratch)
        (scratch / STAMP).write_text(entry["digest"] + "\n")
        scratch.chmod(0o755)
        old = Path(tempfile.mkdtemp(prefix=f".{dest.name}-old-", dir=dest.parent))
        if dest.exists():
            set_aside(dest, old)
        scratch.replace(dest)
        shutil.rmtree(old)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def set_aside(folder: Path, place: Path) -> None:
    """Moves a folder that is about to be replaced, or removes it where it cannot be moved."""
    try:
        folder.replace(place)
    except OSError as error:
        # what lies in a lower layer of an overlay, such as a container's root
        if error.errno != errno.EXDEV:
            raise
        shutil.rmtree(folder)


def main() -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    steps = {name: commands.add_parser(name) for name in ("pack", "verify", "unpack", "unfit", "list")}
    for step in steps.values():
        step.add_argument("bundle", type=Path)
    steps["pack"].add_argument("name")
    steps["pack"].add_argument("folder", type=Path)
    steps["pack"].add_argument("--part-mib", type=int, default=52, help="largest size of a part, in MiB (default 52)")
    steps["verify"].add_argument("names", nargs="*")
    steps["unpack"].add_argument("name")
    steps["unpack"].add_argument("dest", type=Path)
    steps["unfit"].add_argument("names", nargs="+")
    for name in ("verify", "unpack", "unfit"):
        steps[name].add_argument("--digest", default="", help=f"SHA-256 that {MANIFEST} must have")
    steps["unfit"].add_argument("--node", nargs=3, required=True, metavar=("MACHINE", "GLIBC", "PYTHON"))
    arguments = parser.parse_args()
    try:
        print(json.dumps(run(arguments)))
    except (BundleError, OSError, EOFError, ValueError, lzma.LZMAError, tarfile.TarError) as error:
        print(f"gpuckpt_bundle: {error}", file=sys.stderr)
        return 1
    return 0


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the command that `arguments` name; returns what it prints as JSON."""
    if arguments.command == "pack":
        return pack(arguments.bundle, arguments.name, arguments.folder, arguments.part_mib)
    if arguments.command == "verify":
        components = verify(arguments.bundle, arguments.names, arguments.digest)["components"]
        names = arguments.names or sorted(components)
        needs = {name: components[name].get("needs", {}) for name in names}
        return {"verified": names, "needs": needs, "digest": sha256_of(arguments.bundle / MANIFEST)}
    if arguments.command == "unfit":
        manifest = read_manifest(arguments.bundle, arguments.digest)
        return {"unfit": unfit(manifest, arguments.names, *arguments.node)}
    if arguments.command == "unpack":
        return {"changed": unpack(arguments.bundle, arguments.name, arguments.dest, arguments.digest)}
    held: dict[str, Any] = read_manifest(arguments.bundle)["components"]
    return held


if __name__ == "__main__":
    sys.exit(main())
