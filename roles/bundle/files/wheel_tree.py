#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a tree of Python distributions: a folder to put on PYTHONPATH of a node that cannot install anything.

What the tree holds is named by a profile (trees/*.toml) and a lock file of pinned requirements with digests. So the same
tree comes out on any day. Distributions that the node's own Python has are left out.

    wheel_tree.py lock  PROFILE LOCK             resolve with pip's configured index; write versions and SHA-256 digests
    wheel_tree.py fetch PROFILE LOCK WHEELS      download exactly those wheels (pip checks the digests)
    wheel_tree.py tree  PROFILE WHEELS TREE      unpack what the profile keeps, and check that no requirement was lost

Needs Python >= 3.11, `packaging`, and pip in the interpreter that runs it.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# downloads included
PIP_LIMIT_S = 3600


class TreeError(Exception):
    """Something the user must fix; the text says what and how."""


@dataclass(frozen=True)
class Profile:
    """What a profile says: names are canonical, `drop` holds globs on paths in the tree."""

    requirement: str  # empty: the lock file is made elsewhere
    python: str
    glibc_minor: int
    provided: frozenset[str]
    left_out: frozenset[str]
    drop: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Profile:
        """Reads the profile at `path`."""
        data = tomllib.loads(path.read_text())
        names = [name for group in data.get("left_out", {}).values() for name in group]
        return cls(
            requirement=data["tree"].get("requirement", ""),
            python=data["tree"]["python"],
            glibc_minor=data["tree"]["glibc_minor"],
            provided=frozenset(canonicalize_name(name) for name in data["provided"]["names"]),
            left_out=frozenset(canonicalize_name(name) for name in names),
            drop=tuple(glob for group in data.get("drop", {}).values() for glob in group),
        )

    @property
    def environment(self) -> dict[str, str]:
        """Values of the markers on the node."""
        here = {name: str(value) for name, value in default_environment().items()}
        version = {"python_version": self.python, "python_full_version": f"{self.python}.0"}
        return {**here, **version, "sys_platform": "linux", "platform_machine": "x86_64", "extra": ""}

    def keeps(self, name: str) -> bool:
        """Says whether the distribution `name` belongs into the tree (whole names: httpx2 is not httpx)."""
        return canonicalize_name(name) not in self.provided | self.left_out

    def drops(self, path: str) -> bool:
        """Says whether the file `path` of a kept distribution stays out of the tree."""
        return any(fnmatch.fnmatchcase(path, glob) for glob in self.drop)


def pip_target(python: str, glibc_minor: int) -> list[str]:
    """Returns pip's options for wheels of CPython `python` on x86-64 with glibc 2.`glibc_minor`."""
    tags = [f"manylinux_2_{minor}_x86_64" for minor in range(glibc_minor, 4, -1)]
    tags += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    abi = "cp" + python.replace(".", "")
    options = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for name in (abi, "abi3", "none"):
        options += ["--abi", name]
    for tag in tags:
        options += ["--platform", tag]
    return options


def run_pip(arguments: list[str]) -> None:
    """Runs pip of this interpreter.

    :raises TreeError: with pip's last error lines
    """
    argv = [sys.executable, "-m", "pip", *arguments]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PIP_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise TreeError(f"pip {arguments[0]} did not end within {PIP_LIMIT_S} s: see the network") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-3:]
        raise TreeError(f"pip {arguments[0]} failed: " + " / ".join(errors))


def locked_lines(report: dict[str, Any], profile: Profile) -> list[str]:
    """Turns pip's installation report into requirement lines with digests, for the distributions that are kept."""
    lines = []
    for item in report["install"]:
        name = canonicalize_name(item["metadata"]["name"])
        if profile.keeps(name):
            digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
            lines.append(f"{name}=={item['metadata']['version']} --hash=sha256:{digest}")
    return sorted(lines)


def lock(profile: Profile, path: Path) -> None:
    """Resolves the profile's requirement with the configured index and writes the lock file `path`."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        target = ["--ignore-installed", "--target", scratch, "--dry-run", "--report", str(report)]
        run_pip(["install", *target, *pip_target(profile.python, profile.glibc_minor), profile.requirement])
        lines = locked_lines(json.loads(report.read_text()), profile)
    head = f"# {profile.requirement} for CPython {profile.python}, made by `wheel_tree.py lock`"
    path.write_text("\n".join([head, *lines]) + "\n")


def wanted_lines(lock_text: str, profile: Profile) -> list[str]:
    """Returns the pinned requirements of a lock file that hold on the node and that the tree keeps, without markers."""
    lines = []
    for line in lock_text.replace("\\\n", " ").splitlines():
        pinned, _, digests = line.partition("--hash=")
        if not digests or pinned.lstrip().startswith("#"):
            continue
        need = Requirement(pinned)
        applies = need.marker is None or need.marker.evaluate(profile.environment)
        if applies and profile.keeps(need.name):
            lines.append(f"{need.name}{need.specifier} --hash={' '.join(digests.split())}")
    return lines


def fetch(profile: Profile, lock_file: Path, wheels: Path) -> None:
    """Downloads the wheels that `lock_file` names for the node into `wheels`, which holds nothing else afterwards."""
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write("\n".join(wanted_lines(lock_file.read_text(), profile)) + "\n")
        wanted.flush()
        target = ["--no-deps", "--require-hashes", "--dest", str(wheels), "--requirement", wanted.name]
        run_pip(["download", *pip_target(profile.python, profile.glibc_minor), *target])


def members(wheel: zipfile.ZipFile, profile: Profile) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """Yields each kept file of a wheel with its path in the tree (`*.data/purelib` and `platlib` are unfolded)."""
    for info in wheel.infolist():
        if info.is_dir():
            continue
        top, _, rest = info.filename.partition("/")
        path = info.filename
        if top.endswith(".data"):
            scheme, _, path = rest.partition("/")
            if scheme not in ("purelib", "platlib"):
                continue
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise TreeError(
                f"{wheel.filename} holds {info.filename!r}, which leads outside of a tree; do not use that wheel"
            )
        if not profile.drops(path):
            yield info, path


def unpack(wheel_path: Path, tree: Path, profile: Profile) -> int:
    """Unpacks a wheel into `tree`; returns the bytes written."""
    written = 0
    with zipfile.ZipFile(wheel_path) as wheel:
        for info, path in members(wheel, profile):
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with wheel.open(info) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            target.chmod(0o755 if info.external_attr >> 16 & 0o111 else 0o644)
            written += info.file_size
    return written


def missing(metadata: Iterable[str], profile: Profile) -> list[str]:
    """Names every requirement of the kept distributions that neither the tree nor the node nor `left_out` covers.

    :param metadata: the text of each kept distribution's METADATA
    """
    parsed = [HeaderParser().parsestr(text) for text in metadata]
    have = {canonicalize_name(str(item["Name"])): str(item["Version"]) for item in parsed}
    environment = profile.environment
    wrong = []
    for item in parsed:
        for line in item.get_all("Requires-Dist") or []:
            need = Requirement(line)
            name = canonicalize_name(need.name)
            if need.marker is not None and not need.marker.evaluate(environment):
                continue
            if name in have and need.specifier.contains(have[name], prereleases=True):
                continue
            if name in profile.provided | profile.left_out:
                continue
            wrong.append(f"{item['Name']} needs {need}, the tree has {have.get(name, 'none')}")
    return sorted(wrong)


def make_tree(profile: Profile, wheels: Path, tree: Path) -> dict[str, int]:
    """Unpacks the wheels into `tree`, which must not exist; returns the bytes that each wheel added.

    :raises TreeError: when `tree` exists, `wheels` is empty, or a requirement is not covered
    """
    if tree.exists():
        raise TreeError(f"{tree} exists; remove it or name another folder")
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise TreeError(f"no wheels in {wheels}; run `fetch` first")
    sizes = {path.name: unpack(path, tree, profile) for path in found}
    lost = missing((path.read_text(errors="replace") for path in tree.glob("*.dist-info/METADATA")), profile)
    if lost:
        raise TreeError("requirements lost in trimming, correct the profile: " + "; ".join(lost))
    return sizes


def main() -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["lock", "fetch", "tree"])
    parser.add_argument("profile", type=Path)
    parser.add_argument("paths", type=Path, nargs="+")
    arguments = parser.parse_args()
    commands = {"lock": (lock, 1), "fetch": (fetch, 2), "tree": (make_tree, 2)}
    action, count = commands[arguments.command]
    if len(arguments.paths) != count:
        parser.error(f"{arguments.command} takes {count} path(s) after the profile")
    try:
        sizes = action(Profile.read(arguments.profile), *arguments.paths)  # type: ignore[operator]
    except (TreeError, OSError) as error:
        print(f"wheel_tree: {error}", file=sys.stderr)
        return 1
    if sizes is not None:
        print(json.dumps({"wheels": len(sizes), "bytes": sum(sizes.values())}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
