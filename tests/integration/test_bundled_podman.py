# SPDX-License-Identifier: GPL-3.0-or-later
"""A node without podman, whose root is an overlay, gets podman from a bundle: real containers are checkpointed and restored there.

The node is a minimal root of this machine's distribution in namespaces of its own (bare_node.sh). Its kernel and cgroups are this
machine's. So this machine need not be provisioned, and is left as it is.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from plays import ANSIBLE_PLAYBOOK, PURGE, RECAP, ROOT, ROOTFS, STORE, WEIGHTS_MIB, perform

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
SERVER = {
    "gpuckpt_rootfs": ROOTFS,
    "gpuckpt_weights_mib": WEIGHTS_MIB,
    "checkpoint_store_size_mib": 1024,
    "criu_distro": False,
    # it needs a package of the distribution
    "gpuckpt_llama_cpp": False,
    "gpuckpt_iterations": 1,
    "gpuckpt_lane_filter": "^podman-(stock|mapped)$",
}


def on_node(root: Path, scratch: Path, script: str, bundle: Path) -> str:
    """Runs a shell script on the node, which sees the bundle at /bundle; returns all that it said."""
    (scratch / "root-upper/bundle").parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(bundle, scratch / "root-upper/bundle", dirs_exist_ok=True)
    node = [str(HERE / "bare_node.sh"), str(root), str(scratch), str(ROOT), f"{sys.base_prefix}:{sys.prefix}"]
    done = perform([*node, "bash", "-euc", f"{shlex.join(PURGE)}; {script}"])
    assert done.status == 0, done.output[-6000:]
    return done.output


def test_podman_of_a_bundle_checkpoints_containers_and_goes_again(
    bundle: Path, bare_root: Path, tmp_path: Path
) -> None:
    variables = json.dumps({**SERVER, "gpuckpt_bundle": "/bundle", "gpuckpt_results_dir": "/var/tmp/runs"})
    script = f"""
        play() {{ {ANSIBLE_PLAYBOOK} -i inventories/local "$@" -e '{variables}'; }}
        ! command -v podman || exit 1
        ! command -v iptables || exit 1
        stat --format 'storage on %T' --file-system /var/lib
        play provision.yml
        PYTHON=/usr/bin/python3 tools/try_podman.sh plain
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
