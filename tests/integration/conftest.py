# SPDX-License-Identifier: GPL-3.0-or-later
"""The integration tests share a node, as a rule one of own_node.sh: it is provisioned once, and put back when they end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from plays import ROOT, STORE, WEIGHTS_MIB, minimal_root, node_state, play

NODE_PACKAGES = "python3,procps,mount,openssh-server,sudo,iptables,rclone"


@pytest.fixture(scope="session")
def machine() -> None:
    """Skips where the tests could not run, and says why."""
    if os.geteuid() != 0:
        pytest.skip("needs root: provisioning installs CRIU, and CRIU dumps processes")
    if shutil.which("podman") is None:
        pytest.skip("needs podman: run `make deps`")


@pytest.fixture(scope="session")
def was_bare(machine: None) -> dict[str, object] | None:
    """The state of this machine before the tests; None if it was provisioned already, and therefore stays so.

    GPUCKPT_NODE_BEFORE names a file with the state that a copied node had before it was provisioned (plays.py writes it).
    """
    if "GPUCKPT_NODE_BEFORE" in os.environ:
        return dict(json.loads(Path(os.environ["GPUCKPT_NODE_BEFORE"]).read_text(encoding="utf-8")))
    return None if os.path.ismount(STORE) else node_state()


@pytest.fixture(scope="session")
def provisioned(was_bare: dict[str, object] | None) -> Iterator[None]:
    """Provisions this machine, and puts it back at the end; not where own_node.sh has made a machine for the tests alone."""
    if "GPUCKPT_OWN_NODE" in os.environ:
        yield
        return
    play("provision.yml", gpuckpt_weights_mib=WEIGHTS_MIB)
    yield
    # a copy of a node is thrown away
    if was_bare is not None and "GPUCKPT_NODE_BEFORE" not in os.environ:
        play("rollback.yml")


@pytest.fixture(scope="session")
def bundle(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with podman and CRIU, made on this machine."""
    return make_bundle(tmp_path_factory.mktemp("bundle"), "podman", "criu")


@pytest.fixture(scope="session")
def bundle_of_criu(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for nodes that run no containers."""
    return make_bundle(tmp_path_factory.mktemp("bundle"), "criu")


def make_bundle(folder: Path, *components: str) -> Path:
    """Makes a bundle in a folder; returns the folder."""
    lend_builds(ROOT / ".cache")
    with pytest.MonkeyPatch.context() as patch:
        # nobody carries this one anywhere
        patch.setenv("XZ_OPT", "-0")
        play("bundle.yml", bundle_dir=str(folder), bundle_components=components)
    return folder


def lend_builds(cache: Path) -> None:
    """Lays the builds of CRIU that role criu keeps where role bundle keeps its own, which come from the same script.

    That role bundle can build is the business of its scenario.
    """
    for archive in cache.glob("builds/criu-*.tar.gz"):
        digest = archive.name.removesuffix(".tar.gz").rpartition("-")[2]
        build, unpacked = cache / f"bundle/criu-{digest}", cache / f"bundle/.lent-{digest}"
        if build.exists():
            continue
        unpacked.mkdir(parents=True)
        subprocess.run(["tar", "-xzf", archive, "-C", unpacked, "--strip-components=1"], check=True)
        unpacked.rename(build)


@pytest.fixture(scope="session")
def bare_root(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal root of this machine's distribution, without podman; it can be reached over ssh.

    To make one takes longer than most tests: nodes that are to have less remove it (plays.PURGE).
    """
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap: run `make deps`")
    return minimal_root(tmp_path_factory.mktemp("node") / "root", NODE_PACKAGES)
