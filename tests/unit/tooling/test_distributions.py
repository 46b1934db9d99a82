# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripts that look at the distribution: with apt sources as Ubuntu 24.04 and Debian write them, and with the packages that they have.

The scripts are run as they are, except that a folder of this test stands for / where they name a file of the machine.
"""

import gzip
import hashlib
import http.server
import os
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest
from project import ROOT

CRIU = ROOT / "roles/criu/files"
BUILD_IMAGE = ROOT / "roles/container_runtime/files/build_image.sh"
MOVED = ("/etc/os-release", "/etc/apt/", "/usr/sbin/criu")

# /etc/apt/sources.list.d/ubuntu.sources of an installed Ubuntu 24.04, without its comments; hosts are examples
UBUNTU_SOURCES = """\
Types: deb
URIs: http://archive.example.org/ubuntu/
Suites: noble noble-updates noble-backports
Components: main restricted universe multiverse
Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg

Types: deb
URIs: http://security.example.org/ubuntu/
Suites: noble-security
Components: main restricted universe multiverse
Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg
"""
# what the installer leaves next to it
MOVED_NOTE = "# Ubuntu sources have moved to /etc/apt/sources.list.d/ubuntu.sources\n"
UBUNTU_LINES = """\
deb http://archive.example.org/ubuntu noble main restricted universe
# deb-src http://archive.example.org/ubuntu noble main restricted universe
deb [arch=amd64] http://archive.example.org/ubuntu noble-updates main restricted universe
"""
VENDOR_LINE = "deb [signed-by=/etc/apt/keyrings/vendor.asc] https://vendor.example.org/linux/ubuntu noble stable\n"
OS_RELEASE = 'NAME="Ubuntu"\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\nID=ubuntu\nID_LIKE=debian\n'


def moved(script: Path, root: Path) -> Path:
    """Returns a copy of a script for which files of the machine lie below root."""
    text = script.read_text(encoding="utf-8")
    for path in MOVED:
        text = text.replace(path, f"{root}{path}")
    copy = root / script.name
    copy.write_text(text, encoding="utf-8")
    return copy


def put(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def command(folder: Path, name: str, body: str) -> None:
    """Puts a program into a folder, in place of the real one."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def sh(*argv: object, **env: str) -> subprocess.CompletedProcess[str]:
    words = ["sh", *map(str, argv)]
    return subprocess.run(words, env=os.environ | env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (
            {
                "sources.list": MOVED_NOTE,
                "sources.list.d/ubuntu.sources": UBUNTU_SOURCES,
                "sources.list.d/vendor.list": VENDOR_LINE,
            },
            ["sources.list.d/ubuntu.sources"],
        ),
        ({"sources.list": UBUNTU_LINES, "sources.list.d/vendor.list": VENDOR_LINE}, ["sources.list"]),
    ],
    ids=["deb822", "one-line"],
)
def test_an_image_is_made_from_the_sources_of_ubuntu(tmp_path, files, taken):
    put(tmp_path, {f"etc/apt/{name}": text for name, text in files.items()})
    fakes = tmp_path / "fakes"
    command(fakes, "mmdebstrap", f'printf "%s\\n" "$@" >{tmp_path}/said')
    command(fakes, "podman", "true")
    path = f"{fakes}:{os.environ['PATH']}"
    done = sh(moved(BUILD_IMAGE, tmp_path), "localhost/x:latest", "noble", "python3", "a=b", PATH=path)
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "said").read_text(encoding="utf-8").splitlines()
    suite = said.index("noble")
    assert said[suite + 2 :] == [f"{tmp_path}/etc/apt/{name}" for name in taken]


def test_an_image_of_a_release_without_sources_is_refused(tmp_path):
    put(tmp_path, {"etc/apt/sources.list": MOVED_NOTE, "etc/apt/sources.list.d/vendor.list": VENDOR_LINE})
    done = sh(moved(BUILD_IMAGE, tmp_path), "localhost/x:latest", "noble", "python3", "a=b")
    assert done.returncode == 1
    assert "no source of noble main" in done.stderr


def test_ubuntu_is_not_asked_for_debians_source_index(tmp_path):
    put(tmp_path, {"etc/os-release": OS_RELEASE, "etc/apt/sources.list.d/ubuntu.sources": UBUNTU_SOURCES})
    done = sh(moved(CRIU / "fetch_from_apt.sh", tmp_path), tmp_path / "tarball", "0" * 64)
    assert done.returncode == 1
    assert done.stderr == "This is ubuntu, not Debian: its mirrors carry no release tarball of CRIU.\n"


@pytest.fixture
def release(tmp_path):
    """A release as its project serves it (gzip) and as Debian packs it (xz): address, and the checksum of the latter."""
    tree = tmp_path / "tree/criu-9"
    tree.mkdir(parents=True)
    (tree / "Makefile.versions").write_text("CRIU_VERSION_MAJOR := 9\n", encoding="utf-8")
    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(tmp_path / "criu.tar", "w") as archive:
        archive.add(tree, "criu-9")
    content = (tmp_path / "criu.tar").read_bytes()
    (served / "v9.tar.gz").write_bytes(gzip.compress(content, mtime=0))
    packed = subprocess.run(["xz", "-6", "-T4", "--stdout"], input=content, capture_output=True, check=True).stdout

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(served))

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", hashlib.sha256(packed).hexdigest()
        server.shutdown()


def test_the_projects_archive_packed_anew_is_debians_tarball(release, tmp_path):
    address, sha256 = release
    target = tmp_path / "criu_9.orig.tar.xz"
    done = sh(CRIU / "fetch_upstream.sh", target, sha256, f"{address}/v9.tar.gz", XZ_DEFAULTS="-9")
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(target.read_bytes()).hexdigest() == sha256


def test_the_real_tarball_is_packed_so(tmp_path):
    """What was fetched from Debian, unpacked and packed anew, is what was fetched."""
    from_debian = next(iter(ROOT.glob(".cache/sources/criu_*.orig.tar.xz")), None)
    if from_debian is None:
        pytest.skip("no tarball of CRIU in .cache/sources: `make sources` fetches it")
    with gzip.open(tmp_path / "release.tar.gz", "wb", compresslevel=1) as file:
        file.write(subprocess.run(["xz", "-dc", from_debian], capture_output=True, check=True).stdout)
    sha256 = hashlib.sha256(from_debian.read_bytes()).hexdigest()
    done = sh(CRIU / "fetch_upstream.sh", tmp_path / "criu.tar.xz", sha256, f"file://{tmp_path}/release.tar.gz")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "criu.tar.xz").read_bytes() == from_debian.read_bytes()


@pytest.mark.parametrize(
    ("name", "cause"),
    [("v9.tar.gz", "has the sha256"), ("v8.tar.gz", "cannot be fetched: HTTP Error 404"), ("", "is no gzip archive")],
)
def test_an_archive_that_is_not_the_release_is_refused(release, tmp_path, name, cause):
    target = tmp_path / "criu_9.orig.tar.xz"
    done = sh(CRIU / "fetch_upstream.sh", target, "0" * 64, f"{release[0]}/{name}")
    assert done.returncode == 1
    assert cause in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not target.exists()
