# SPDX-License-Identifier: GPL-3.0-or-later
"""A node without podman, whose root is an overlay, gets podman from a bundle: real containers are checkpointed and restored there.

The node is a minimal root of this machine's distribution in namespaces of its own (bare_node.sh): its kernel and cgroups are this
machine's, which therefore need not be provisioned, and is left as it is.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from plays import ANSIBLE_PLAYBOOK, RECAP, ROOT, STORE, WEIGHTS_MIB, play

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
ROOTFS = "/mnt/gpuckpt-rootfs"
PACKAGES = "python3,python3-httpx,procps,mount"
SERVER = {
    "gpuckpt_rootfs": ROOTFS,
    "gpuckpt_weights_mib": WEIGHTS_MIB,
    "checkpoint_store_size_mib": 1024,
    "criu_distro": False,
    "gpuckpt_iterations": 1,
    "gpuckpt_lane_filter": "^podman-(stock|mapped)$",
}


@pytest.fixture(scope="module")
def bundle(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with podman and CRIU, made on this machine."""
    folder = tmp_path_factory.mktemp("bundle")
    play("bundle.yml", bundle_dir=str(folder), bundle_components=["podman", "criu"])
    return folder


def apt_sources(suite: str) -> list[str]:
    """This machine's apt sources of the suite, the distribution's own: what mmdebstrap takes by itself has no universe on Ubuntu."""
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.[ls]*"))]
    named = [re.compile(rf"^[^#\n]*\s{re.escape(word)}(\s|$)", re.MULTILINE) for word in (suite, "main")]
    texts = {str(file): file.read_text(encoding="utf-8") for file in files if file.is_file()}
    return [file for file, text in texts.items() if all(word.search(text) for word in named)]


@pytest.fixture(scope="module")
def bare_root(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal root of this machine's distribution, without podman."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap: run `make deps`")
    folder = tmp_path_factory.mktemp("node") / "root"
    suite = next(
        line.partition("=")[2]
        for line in Path("/etc/os-release").read_text().splitlines()
        if line.startswith("VERSION_CODENAME=")
    )
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={PACKAGES}",
        suite,
        str(folder),
        *apt_sources(suite),
    ]
    subprocess.run(command, check=True, timeout=300, stdin=subprocess.DEVNULL)
    return folder


def on_node(root: Path, scratch: Path, script: str, bundle: Path) -> str:
    """Run a shell script on the node, which sees the bundle at /bundle; return all that it said."""
    (scratch / "root-upper/bundle").parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(bundle, scratch / "root-upper/bundle", dirs_exist_ok=True)
    node = [str(HERE / "bare_node.sh"), str(root), str(scratch), str(ROOT), f"{sys.base_prefix}:{sys.prefix}"]
    done = subprocess.run(
        [*node, "bash", "-euc", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_podman_of_a_bundle_checkpoints_containers_and_goes_again(
    bundle: Path, bare_root: Path, tmp_path: Path
) -> None:
    variables = json.dumps({**SERVER, "gpuckpt_bundle": "/bundle", "gpuckpt_results_dir": "/var/tmp/runs"})
    script = f"""
        play() {{ {ANSIBLE_PLAYBOOK} -i inventories/local "$@" -e '{variables}'; }}
        ! command -v podman
        stat --format 'storage on %T' --file-system /var/lib
        play provision.yml
        PYTHON=/usr/bin/python3 tests/gpu/try_podman.sh plain
        play bench.yml -e gpuckpt_run_id=bundled
        tail -n +1 /var/tmp/runs/bundled/records.jsonl
        play provision.yml
        play rollback.yml
        ls -d /usr/local/bin/podman /opt/gpuckpt /etc/containers {ROOTFS} /var/lib/gpuckpt/containers /run/gpuckpt-containers /etc/mtab || true
        grep -E 'gpuckpt|{STORE}' /proc/self/mounts /etc/fstab || true
    """
    said = on_node(bare_root, tmp_path, script, bundle)
    assert "storage on overlayfs" in said
    assert "plain: running again" in said
    records = [json.loads(line) for line in said.splitlines() if line.startswith('{"') and '"kind"' in line]
    restored = {record["lane"]: record for record in records if record["kind"] == "restore" and not record["warmup"]}
    assert {lane: record["status"] for lane, record in restored.items()} == {
        "podman-stock": "ok",
        "podman-mapped": "ok",
    }
    assert restored["podman-mapped"]["bytes"]["mapped"] > WEIGHTS_MIB << 20
    changed = [int(match[3]) for match in RECAP.finditer(said)]
    # provision, bench, provision again, roll back
    assert changed[2] == 0
    left = said[said.rindex("PLAY RECAP") :]
    assert left.count("No such file or directory") == 7, left
    assert f"{STORE} tmpfs" not in left
    assert ROOTFS not in left.replace(f"'{ROOTFS}'", "")


def test_a_node_with_an_older_c_library_is_refused(bundle: Path, bare_root: Path, tmp_path: Path) -> None:
    script = f"""
        mkdir -p /opt/gpuckpt/podman
        echo '{{"glibc": "2.999", "machine": "sparc", "prefix": "/opt/gpuckpt/podman", "packages": []}}' > /opt/gpuckpt/podman/TREE.json
        ! {ANSIBLE_PLAYBOOK} -i inventories/local provision.yml -e criu_distro=false
    """
    said = " ".join(on_node(bare_root, tmp_path, script, bundle).split())
    assert "needs glibc 2.999" in said
    assert "is for sparc" in said
    assert "Set gpuckpt_rootfs" in said
