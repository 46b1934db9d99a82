# SPDX-License-Identifier: GPL-3.0-or-later
"""What dpkg and apt say of packages."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.node import info, packages
from ansible.module_utils.ckpt.node.inspection import Node

# Debian 12: one that is there, one that was removed and left its configuration; exit status 1, since there is no third.
DPKG = "installed\tpodman\t4.3.1+ds1-8+deb12u1\nconfig-files\tcriu\t4.1.1-1\n"
# `apt-cache policy` of Ubuntu 24.04, where packages recommend criu and none is that, and of Debian 13.
MENTIONED = "criu:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n"
OFFERED = "criu:\n  Installed: (none)\n  Candidate: 4.1.1-1\n  Version table:\n     4.1.1-1 500\n"


def test_what_is_installed_comes_with_its_version(make_node) -> None:
    node = make_node(outputs={"dpkg-query": (1, DPKG)})
    assert packages.installed(node, ["podman", "criu", "runc"]) == {"podman": "4.3.1+ds1-8+deb12u1"}


def test_a_node_without_dpkg_does_not_tell(make_node) -> None:
    assert packages.installed(make_node(), ["podman"]) is None
    assert packages.offered(make_node(), ["podman"]) == []


def test_nothing_asked_is_nothing_found(make_node) -> None:
    found = info.describe(make_node(), "/opt/criu")
    assert (found["packages"], found["offered"]) == ({}, [])


@pytest.mark.parametrize(
    ("text", "names"), [("", []), (MENTIONED, []), (OFFERED, ["criu"]), (MENTIONED + OFFERED, ["criu"])]
)
def test_a_candidate_is_a_version_that_apt_could_install(text: str, names: list[str]) -> None:
    assert packages.candidates(text) == names


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="dpkg-query is missing")
def test_this_machine_has_dpkg_itself() -> None:
    found = packages.installed(Node(), ["no-such-package-anywhere", "dpkg"])
    assert found is not None
    assert list(found) == ["dpkg"]
    assert found["dpkg"][0].isdigit()


def test_words_that_look_like_options_are_names() -> None:
    assert packages.installed(Node(), ["--version"]) in ({}, None)
    assert packages.offered(Node(), ["--version"]) == []


@pytest.mark.skipif(shutil.which("apt-cache") is None, reason="apt-cache is missing")
@pytest.mark.parametrize("offered", [False, True], ids=["mentioned", "offered"])
def test_a_package_that_others_only_mention_is_not_offered(tmp_path: Path, offered: bool) -> None:
    common = "Architecture: all\nMaintainer: nobody\nDescription: none\n"
    of_criu = f"\nPackage: criu\nVersion: 4.2-1\n{common}Size: 1\nFilename: ./criu.deb\nSHA256: {'0' * 64}\n"
    listed = f"Package: runc\nVersion: 1.3.3-0ubuntu1\nRecommends: criu\n{common}" + (of_criu if offered else "")
    for folder in ("repository", "state/lists/partial", "cache/archives/partial"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "repository/Packages").write_text(listed, encoding="utf-8")
    (tmp_path / "state/status").touch()
    (tmp_path / "sources").write_text(f"deb [trusted=yes] file:{tmp_path}/repository ./\n", encoding="utf-8")
    options = {
        "Dir::State": f"{tmp_path}/state",
        "Dir::State::status": f"{tmp_path}/state/status",
        "Dir::Cache": f"{tmp_path}/cache",
        "Dir::Etc::SourceList": f"{tmp_path}/sources",
        "Dir::Etc::SourceParts": "-",
        "Dir::Etc::PreferencesParts": "-",
        "APT::Sandbox::User": "root",
    }
    (tmp_path / "apt.conf").write_text(
        "".join(f'{key} "{value}";\n' for key, value in options.items()), encoding="utf-8"
    )
    environment = os.environ | {"APT_CONFIG": str(tmp_path / "apt.conf"), "LC_ALL": "C"}
    said = {}
    # the second succeeds with or without a version
    for argv in (["apt-get", "-qq", "update"], ["apt-cache", "show", "criu"], ["apt-cache", "policy", "--", "criu"]):
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        said[argv[1]] = done.stdout
    assert packages.candidates(said["policy"]) == (["criu"] if offered else [])
