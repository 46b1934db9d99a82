# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes into the tree of podman: fields of real packages (Debian 12 and 13), and this machine's own programs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from project import ROOT

FILES = ROOT / "roles" / "bundle" / "files"
sys.path.insert(0, str(FILES))

import program_tree as tree  # noqa: E402

# dpkg-deb --field podman_4.3.1+ds1-8+deb12u1+b3_amd64.deb Depends Pre-Depends, and of libpam0g_1.5.2-6+deb12u2
PODMAN = (
    "Depends: libc6 (>= 2.34), libdevmapper1.02.1 (>= 2:1.02.97), libgpgme11 (>= 1.4.1), libseccomp2 (>= 2.5.0), "
    "libsubid4 (>= 1:4.11.1), conmon (>= 2.0.18~), golang-github-containers-common, crun | runc (>= 1.0.0~rc92~)\n"
)
# podman_5.4.2+ds1-2+b2_amd64.deb of Debian 13
PODMAN_5 = (
    "Depends: conmon, crun | runc, golang-github-containers-common, netavark, init-system-helpers (>= 1.52), "
    "libc6 (>= 2.38), libgpgme11t64 (>= 1.23.2), libseccomp2 (>= 2.5.0), libsqlite3-0 (>= 3.36.0), libsubid5 (>= 1:4.16.0)\n"
)
PAM = "Depends: libaudit1 (>= 1:2.2.1), libc6 (>= 2.34), debconf (>= 0.5) | debconf-2.0\nPre-Depends: dpkg:any (>= 1)\n"


def test_of_alternatives_the_first_is_taken() -> None:
    assert tree.dependencies(PODMAN) == [
        "libc6",
        "libdevmapper1.02.1",
        "libgpgme11",
        "libseccomp2",
        "libsubid4",
        "conmon",
        "golang-github-containers-common",
        "crun",
    ]
    assert tree.dependencies(PAM) == ["libaudit1", "libc6", "debconf", "dpkg"]


def test_netavark_is_taken_along_where_podman_depends_on_it() -> None:
    assert tree.helpers_among(tree.dependencies(PODMAN)) == []
    assert tree.helpers_among(tree.dependencies(PODMAN_5)) == ["netavark"]


def test_the_oldest_c_library_is_the_newest_version_that_is_asked_for() -> None:
    assert tree.oldest_c_library([b"\0GLIBC_2.4\0GLIBC_2.34\0", b"\0GLIBC_2.9\0"]) == "2.34"
    own = tree.oldest_c_library([Path(sys.executable).resolve().read_bytes()])
    node = subprocess.run(["getconf", "GNU_LIBC_VERSION"], capture_output=True, text=True, check=True).stdout.split()[1]
    assert (2, 4) < tuple(map(int, own.split("."))) <= tuple(map(int, node.split(".")))


@pytest.mark.parametrize("name", ["libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "libpthread.so.0"])
def test_the_c_library_is_left_to_the_node(name: str) -> None:
    assert tree.C_LIBRARY.fullmatch(name)


@pytest.mark.parametrize("name", ["libcap.so.2", "libcrypt.so.1", "libmount.so.1", "libdevmapper.so.1.02.1"])
def test_what_is_called_like_it_is_taken_along(name: str) -> None:
    assert not tree.C_LIBRARY.fullmatch(name)


def test_a_tree_that_exists_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # it sets the locale of what it runs; the tests after this one get theirs back
        patch.setenv("LC_ALL", "C")
        patch.setattr(sys, "argv", ["program_tree.py", "--debs", str(tmp_path), "--prefix", "/opt/x", str(tmp_path)])
        assert tree.main() == 1
    assert f"{tmp_path} exists; remove it" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is missing")
def test_an_unknown_package_is_named(tmp_path: Path) -> None:
    packages = tree.Packages(tmp_path / "debs", tmp_path / "root")
    with pytest.raises(tree.TreeError, match="gpuckpt-no-such-package"):
        packages.fetch(["gpuckpt-no-such-package"])


@pytest.mark.parametrize(
    ("kind", "role", "name"),
    [("podman", "container_runtime", "__container_runtime_tree"), ("copies", "copies", "__copies_tree")],
)
def test_the_bundle_and_the_node_agree_where_the_tree_lies(kind: str, role: str, name: str) -> None:
    roles = FILES.parents[1]
    written, known = (
        yaml.safe_load((roles / one / "vars/main.yml").read_text(encoding="utf-8")) for one in ("bundle", role)
    )
    assert written["__bundle_programs_dest"][kind] == known[name]


def test_a_link_out_of_a_package_is_not_followed(tmp_path: Path) -> None:
    packages = tree.Packages(tmp_path / "debs", tmp_path / "root")
    library = tmp_path / "root" / "libevil" / "usr" / "lib" / "libevil.so.1"
    library.parent.mkdir(parents=True)
    library.symlink_to("/etc/passwd")
    assert packages.library("libevil.so.1") is None
    with pytest.raises(tree.TreeError, match="leads out of its package"):
        packages.copy(library, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
