# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a signed package repository of a fake driver: packages named and dependent like NVIDIA's, with the programs of standins/ in them."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

STANDINS = Path(__file__).with_name("standins")
PINNED, NEWER, OTHER_BRANCH = "580.126.09", "580.159.04", "590.48.01"
DRIVER = ("nvidia-open", "nvidia-kernel-open-dkms", "nvidia-driver-bin", "libcuda1")
# The last is one that no container needs.
LIBRARIES = (
    "libcuda",
    "libnvidia-ml",
    "libnvidia-ptxjitcompiler",
    "libnvidia-nvvm",
    "libnvidia-gpucomp",
    "libnvidia-encode",
)
FOLDER = "usr/lib/stand-in-driver"


class Key:
    """A key that signs, made in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.home.mkdir(mode=0o700)
        self._gpg(
            "--batch",
            "--passphrase",
            "",
            "--quick-generate-key",
            "stand-in@example.invalid",
            "ed25519",
            "sign",
            "never",
        )
        self.armoured, self.binary = home / "key.asc", home / "key.gpg"
        self.armoured.write_bytes(self._gpg("--armor", "--export"))
        self.binary.write_bytes(self._gpg("--export"))

    def sign(self, text: Path, signed: Path) -> None:
        """Writes `text` with a signature around it."""
        self._gpg("--batch", "--yes", "--clearsign", "--output", str(signed), str(text))

    def end(self) -> None:
        """Ends the agent that gpg started."""
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False)

    def _gpg(self, *arguments: str) -> bytes:
        command = ["gpg", "--homedir", str(self.home), "--quiet", *arguments]
        return subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout


def make_repository(folder: Path, versions: tuple[str, ...], key: Key | None) -> None:
    """Makes a flat repository of the driver in these versions, signed with a key."""
    stanzas = [stanza for version in versions for stanza in _driver(folder, version)]
    write_index(folder, stanzas, key)


def headers(folder: Path, kernel: str) -> None:
    """Makes a flat, unsigned repository with the headers of a kernel, as a distribution has them."""
    files = {f"lib/modules/{kernel}/build/Makefile": "# stand-in\n"}
    write_index(folder, [package(folder, f"linux-headers-{kernel}", "1", "", files)], None)


def write_index(folder: Path, stanzas: list[str], key: Key | None) -> None:
    """Writes Packages and Release, and InRelease with a key's signature."""
    packages = folder / "Packages"
    packages.write_text("\n".join(stanzas))
    digest = hashlib.sha256(packages.read_bytes()).hexdigest()
    release = folder / "Release"
    release.write_text(
        f"Origin: stand-in\nSuite: stand-in\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {digest} {packages.stat().st_size} Packages\n"
    )
    if key is not None:
        key.sign(release, folder / "InRelease")
        release.unlink()


def _driver(folder: Path, version: str) -> list[str]:
    """The packages of one version; they need each other in that version, as NVIDIA's do."""
    full = f"{version}-1"
    kernel = os.uname().release
    loader = (STANDINS / "load-driver").read_text()
    build = f"#!/bin/sh\nset -e\n[ -e /lib/modules/{kernel}/build/Makefile ]\necho {version} >/lib/modules/{kernel}/stand-in-nvidia\n"
    programs = {f"usr/bin/{name}": (STANDINS / name).read_text() for name in ("nvidia-smi", "nvidia-modprobe")}
    unit = "[Unit]\nDescription=Stand-in\n[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
    library_folder = f"usr/lib/{os.uname().machine}-linux-gnu"
    libraries = {f"{library_folder}/{name}.so.{version}": f"stand-in {name}\n" for name in LIBRARIES}
    return [
        package(folder, "nvidia-open", full, ", ".join(f"{name} (= {full})" for name in DRIVER[1:])),
        package(
            folder,
            "nvidia-kernel-open-dkms",
            full,
            "",
            {
                f"{FOLDER}/load-driver": loader,
                "etc/modprobe.d/stand-in.conf": f"install nvidia-uvm /{FOLDER}/load-driver\n",
            },
            postinst=build,
        ),
        package(
            folder,
            "nvidia-driver-bin",
            full,
            f"libcuda1 (= {full})",
            {**programs, "usr/lib/systemd/system/nvidia-persistenced.service": unit},
        ),
        package(folder, "libcuda1", full, "", {**libraries, f"{FOLDER}/libcuda.so.{version}": ""}),
    ]


def package(
    folder: Path, name: str, version: str, depends: str, files: Mapping[str, str] | None = None, postinst: str = ""
) -> str:
    """Builds a package of text files (a first line `#!` makes one executable); returns its entry in the index."""
    tree = folder / "trees" / f"{name}_{version}"
    fields = {
        "Package": name,
        "Version": version,
        "Architecture": "all",
        "Maintainer": "Tests <stand-in@example.invalid>",
        **({"Depends": depends} if depends else {}),
        "Description": "Stand-in of the tests, not NVIDIA's",
    }
    control = "".join(f"{field}: {value}\n" for field, value in fields.items())
    contents = {**(files or {}), "DEBIAN/control": control, **({"DEBIAN/postinst": postinst} if postinst else {})}
    for path, text in contents.items():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755 if text.startswith("#!") else 0o644)
    built = folder / f"{name}_{version}_all.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(tree), str(built)]
    subprocess.run(command, check=True, capture_output=True)
    digest = hashlib.sha256(built.read_bytes()).hexdigest()
    return f"{control}Filename: ./{built.name}\nSize: {built.stat().st_size}\nSHA256: {digest}\n"
