#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a tree of programs and what they need from this machine's own distribution, for a node that reaches no registry.

    program_tree.py [--kind podman|copies] --debs FOLDER --prefix PREFIX TREE

It has podman with what it runs, or rclone, skopeo and age, with which golden checkpoints are copied.
Downloads the packages with apt, which verifies them, and takes programs, their shared libraries and their licences; nothing
is installed here. Programs find their libraries below PREFIX, where the tree must lie on the node. A path relative to the
program or a variable would not do. runc starts itself again from a copy in memory and with an empty environment.
The C library is the node's; TREE/TREE.json names the oldest one that will do, and every package with its digest.

Needs Python >= 3.11, apt-get and dpkg-deb.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gpuckpt_bundle import oldest_c_library

# by kind of tree; each in the package of its name
PROGRAMS = {"podman": ("podman", "conmon", "runc"), "copies": ("rclone", "skopeo", "age")}
# where podman depends on it (from 5 on): it starts no container without, not even on the host's network
HELPERS = ("netavark",)
PROGRAM_FOLDERS = ("usr/bin", "usr/sbin", "usr/lib/podman", "usr/libexec/podman")
DATA_PACKAGE = "golang-github-containers-common"
# by kind of tree; skopeo is called without a policy
DATA = {
    "podman": {
        "usr/share/containers/seccomp.json": "share/containers/seccomp.json",
        "etc/containers/policy.json": "share/containers/policy.json",
    },
    "copies": {},
}
TOOL = "patchelf"
NODES_OWN = "libc6"
C_LIBRARY = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|util|nsl|anl|mvec))\.so\b.*")
# downloads included
COMMAND_LIMIT_S = 3600
LIBRARY_FOLDERS = ("usr/lib", "lib")


class TreeError(Exception):
    """Something the user must fix; the text says what and how."""


def run(argv: Sequence[str], cwd: Path | None = None) -> str:
    """Runs a command and returns its standard output.

    :raises TreeError: when it is missing or fails, with its last line
    """
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=cwd, timeout=COMMAND_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise TreeError(
            f"{' '.join(map(str, argv[:3]))} did not end within {COMMAND_LIMIT_S} s: see the network"
        ) from None
    except FileNotFoundError:
        raise TreeError(f"{argv[0]} is missing: make this component on Debian or Ubuntu") from None
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise TreeError(f"{' '.join(map(str, argv[:3]))} failed: {last[0]}")
    return done.stdout


def dependencies(fields: str) -> list[str]:
    """Returns the names in `Depends` and `Pre-Depends` (fields of `dpkg-deb --field`), of alternatives the first."""
    wanted = []
    for line in fields.splitlines():
        key, _, value = line.partition(":")
        if key in ("Depends", "Pre-Depends"):
            wanted += [group.split("|")[0].split("(")[0].split(":")[0].strip() for group in value.split(",")]
    return [name for name in wanted if name]


def helpers_among(names: Iterable[str]) -> list[str]:
    """Returns which of podman's dependencies are programs that it runs as its helpers."""
    return [name for name in HELPERS if name in names]


class Packages:
    """Packages of this machine's distribution, downloaded once to `debs` and unpacked side by side below `root`."""

    def __init__(self, debs: Path, root: Path) -> None:
        self.debs, self.root = debs, root
        root.mkdir(parents=True)
        self.taken: dict[str, Path] = {}

    def fetch(self, names: Iterable[str]) -> None:
        """Downloads and unpacks the packages that are not here yet."""
        missing = [name for name in dict.fromkeys(names) if name not in self.taken]
        if not missing:
            return
        self.debs.mkdir(parents=True, exist_ok=True)
        # lines of 'URI' FILE SIZE DIGEST; a file that is there and right is not downloaded again
        offered = run(["apt-get", "download", "--print-uris", *missing]).splitlines()
        files = {line.split()[1].split("_")[0]: line.split()[1] for line in offered}
        unknown = [name for name in missing if name not in files]
        if unknown:
            raise TreeError(f"apt offers no package {', '.join(unknown)}: run `apt-get update`")
        run(["apt-get", "download", "--quiet", *missing], cwd=self.debs)
        for name in missing:
            self.taken[name] = self.debs / files[name]
            run(["dpkg-deb", "--extract", str(self.taken[name]), str(self.root / name)])

    def dependencies_of(self, name: str) -> list[str]:
        """Returns what a package that was taken depends on, of alternatives the first."""
        return dependencies(run(["dpkg-deb", "--field", str(self.taken[name]), "Depends", "Pre-Depends"]))

    def depended_on(self) -> list[str]:
        """Returns the libraries' packages that those taken so far depend on directly and that are not taken yet."""
        found = dict.fromkeys(name for package in self.taken for name in self.dependencies_of(package))
        libraries = [name for name in found if name.startswith("lib") and name != NODES_OWN]
        return [name for name in libraries if name not in self.taken]

    def holds(self, path: Path) -> bool:
        """Says whether a file lies in one of the packages, and is no link to one of this machine."""
        return path.resolve().is_relative_to(self.root.resolve())

    def copy(self, source: Path, target: Path) -> None:
        """Copies a file of a package.

        :raises TreeError: when it is a link to a file of this machine
        """
        if not self.holds(source):
            raise TreeError(
                f"{source.relative_to(self.root)} is a link that leads out of its package; do not use that package"
            )
        shutil.copyfile(source, target)

    def library(self, soname: str) -> Path | None:
        """Returns the file that is loaded as `soname`."""
        for folder in LIBRARY_FOLDERS:
            for pattern in (soname, f"*/{soname}"):
                for path in sorted(self.root.glob(f"*/{folder}/{pattern}")):
                    if path.exists() and self.holds(path):
                        return path.resolve()
        return None

    def entries(self) -> list[dict[str, str]]:
        """Returns name, version and digest of each package."""
        entries = []
        for name, deb in sorted(self.taken.items()):
            version = run(["dpkg-deb", "--field", str(deb), "Version"]).strip()
            entries.append({"name": name, "version": version, "sha256": hashlib.sha256(deb.read_bytes()).hexdigest()})
        return entries


def needed(patchelf: Path, path: Path) -> list[str]:
    """Returns the shared libraries that an ELF file asks for, without the C library's."""
    names = run([str(patchelf), "--print-needed", str(path)]).split()
    return [name for name in names if not C_LIBRARY.fullmatch(name)]


def collect_libraries(packages: Packages, patchelf: Path, programs: Iterable[Path], folder: Path) -> None:
    """Copies every library that the programs need, directly or through another, to `folder`.

    :raises TreeError: naming a library that no package of the dependencies holds
    """
    waiting = [name for program in programs for name in needed(patchelf, program)]
    while waiting:
        name = waiting.pop()
        target = folder / name
        if target.exists():
            continue
        while (source := packages.library(name)) is None:
            more = packages.depended_on()
            if not more:
                raise TreeError(f"no package holds {name}: run `apt-get update` and try again")
            packages.fetch(more)
        shutil.copyfile(source, target)
        waiting += needed(patchelf, target)


def make(debs: Path, prefix: str, tree: Path, kind: str = "podman") -> dict[str, object]:
    """Makes a tree of one kind at `tree`, which must not exist; returns what TREE.json holds.

    :raises TreeError: when `tree` exists, or a package or library cannot be had
    """
    if tree.exists():
        raise TreeError(f"{tree} exists; remove it or name another folder")
    with tempfile.TemporaryDirectory(prefix="podman-tree-") as scratch:
        tools = Packages(debs, Path(scratch, "tools"))
        tools.fetch([TOOL])
        patchelf = Path(scratch, "tools", TOOL, "usr/bin/patchelf")
        packages = Packages(debs, Path(scratch, "packages"))
        packages.fetch([*PROGRAMS[kind], *([DATA_PACKAGE] if DATA[kind] else [])])
        helpers = helpers_among(packages.dependencies_of(PROGRAMS[kind][0]))
        packages.fetch(helpers)
        names = [*PROGRAMS[kind], *helpers]
        for folder in ("bin", "lib", "share/containers", "share/doc"):
            (tree / folder).mkdir(parents=True)
        programs = [copy_program(packages, name, tree / "bin") for name in names]
        collect_libraries(packages, patchelf, programs, tree / "lib")
        for program in programs:
            # the older kind of entry, since it holds for the libraries of our libraries, too
            run([str(patchelf), "--force-rpath", "--set-rpath", f"{prefix}/lib", str(program)])
        copy_data(packages, names, tree, DATA[kind])
        elves = [*programs, *(tree / "lib").iterdir()]
        about: dict[str, object] = {
            "machine": platform.machine(),
            "prefix": prefix,
            "glibc": oldest_c_library(path.read_bytes() for path in elves),
            "packages": packages.entries(),
        }
    (tree / "TREE.json").write_text(json.dumps(about, indent=1) + "\n")
    return about


def copy_program(packages: Packages, name: str, folder: Path) -> Path:
    """Copies the program `name` out of its package; returns where it lies now."""
    found = [packages.root / name / place / name for place in PROGRAM_FOLDERS]
    source = next((path for path in found if path.is_file() and not path.is_symlink()), None)
    if source is None:
        raise TreeError(f"the package {name} holds no program {name}; another distribution's may")
    packages.copy(source, folder / name)
    (folder / name).chmod(0o755)
    return folder / name


def copy_data(packages: Packages, programs: Iterable[str], tree: Path, data: Mapping[str, str]) -> None:
    """Copies default profiles, and the licence of every package of which something is in the tree."""
    for source, target in data.items():
        packages.copy(packages.root / DATA_PACKAGE / source, tree / target)
    used = {*programs, *([DATA_PACKAGE] if data else [])}
    for path in (tree / "lib").iterdir():
        library = packages.library(path.name)
        assert library is not None
        used.add(library.relative_to(packages.root.resolve()).parts[0])
    for package in sorted(used):
        copyright_file = packages.root / package / "usr/share/doc" / package / "copyright"
        if copyright_file.is_file():
            (tree / "share/doc" / package).mkdir()
            packages.copy(copyright_file, tree / "share/doc" / package / "copyright")
    packages.taken = {name: deb for name, deb in packages.taken.items() if name in used}


def main() -> int:
    """Makes a tree; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted(PROGRAMS), default="podman", help="which programs")
    parser.add_argument("--debs", type=Path, required=True, help="folder that keeps the downloaded packages")
    parser.add_argument("--prefix", required=True, help="where the tree will lie on the node")
    parser.add_argument("tree", type=Path)
    arguments = parser.parse_args()
    os.environ["LC_ALL"] = "C"
    try:
        about = make(arguments.debs, arguments.prefix, arguments.tree, arguments.kind)
    except (TreeError, OSError) as error:
        print(f"program_tree: {error}", file=sys.stderr)
        return 1
    print(json.dumps(about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
