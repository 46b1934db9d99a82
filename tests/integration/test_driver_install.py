# SPDX-License-Identifier: GPL-3.0-or-later
"""Role nvidia_driver installs a driver: real apt, keys, pins and holds, on a node whose GPU and whose driver are fakes.

The node is a minimal root of this machine's distribution behind a chroot (gpu_node.sh). The packages are stand-ins
(driver_repository.py). Nothing of this machine's packages, /etc or /sys is touched, and no driver of NVIDIA is run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import driver_repository
import pytest
from driver_repository import DRIVER, NEWER, OTHER_BRANCH, PINNED, Key
from plays import ANSIBLE_PLAYBOOK, HANGS_S, ROOT, Played, content, minimal_root, perform

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent
KERNEL = os.uname().release
PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: nvidia_driver
        tasks_from: "{{ phase | default('main') }}"
"""
# What apt and Ansible leave wherever they run.
NOISE = re.compile(
    r"^/(root/\.ansible|var/cache|srv/nvidia)(/|$)|__pycache__|^/(root|proc|var/lib/apt/lists/partial|tmp|run)$"
)
NOUVEAU = "nouveau 1 0 - Live 0x0\n"


@dataclass(frozen=True)
class Repository:
    """The fake driver's packages, the key that signs them, and one that does not."""

    folder: Path
    key: Key
    wrong_key: Key


@dataclass(frozen=True)
class GpuNode:
    """A fake node: the root below it, what was written to it (`scratch`), and the repository it sees."""

    root: Path
    scratch: Path
    repository: Repository

    def run(self, *command: str, timeout_s: int = HANGS_S) -> Played:
        """Runs a command next to the node."""
        argv = [str(HERE / "gpu_node.sh"), str(self.root), str(self.scratch), str(self.repository.folder), *command]
        return perform(argv, timeout_s)

    def shell(self, script: str) -> str:
        """Runs a shell script on the node; returns its output."""
        done = self.run("chroot", str(self.scratch / "node"), "sh", "-euc", script)
        assert done.status == 0, done.output
        return done.output

    def play(self, *arguments: str, check: bool = True, **variables: Any) -> Played:
        """Plays the role on the node.

        :raises AssertionError: with what was said, when it fails and ``check`` is set
        """
        play = self.scratch / "play.yml"
        play.write_text(PLAY)
        inventory = self.scratch / "inventory"
        inventory.write_text(
            f"node ansible_connection=community.general.chroot ansible_host={self.scratch}/node"
            " ansible_python_interpreter=/usr/bin/python3\n"
        )
        given = json.dumps({**self.wanted(), **variables})
        done = self.run(str(ANSIBLE_PLAYBOOK), "-i", str(inventory), str(play), *arguments, "-e", given)
        assert not check or done.status == 0, done.output[-6000:]
        return done

    def wanted(self) -> dict[str, Any]:
        """The variables of a node that is to have the older driver of its branch."""
        return {
            "nvidia_driver_install": True,
            "nvidia_driver_branch": 580,
            "nvidia_driver_packages": [f"nvidia-open={PINNED}-1"],
            "nvidia_driver_repository": {
                "uris": ["file:///srv/nvidia"],
                "suites": ["./"],
                "signed_by": str(self.repository.key.armoured),
            },
        }

    def kernel(self, name: str, text: str | None = None) -> str:
        """Returns a file of the node's fake kernel, after giving it another content."""
        file = self.scratch / name
        if text is not None:
            file.write_text(text)
        return file.read_text()

    def written(self) -> dict[str, str]:
        """Returns what was written to the node's root or taken from it, without what apt and Ansible leave wherever they run."""
        upper = self.scratch / "upper"
        paths = (path for path in upper.rglob("*") if not path.is_dir() or path.is_symlink())
        found = {f"/{path.relative_to(upper)}": path for path in paths}
        return {
            name: "device" if stat.S_ISCHR(path.lstat().st_mode) else content(path)
            for name, path in sorted(found.items())
            if not NOISE.search(name)
        }


def said(played: Played) -> str:
    """Returns what a play said, on one line."""
    return " ".join(played.output.split())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """A signed repository with two versions of a branch and one of another."""
    missing = [name for name in ("gpg", "dpkg-deb", "mmdebstrap", "unshare") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: run `make deps`")
    folder = tmp_path_factory.mktemp("driver")
    keys = [Key(folder / name) for name in ("key", "wrong-key")]
    packages = folder / "repository"
    packages.mkdir()
    driver_repository.make_repository(packages, (PINNED, NEWER, OTHER_BRANCH), keys[0])
    yield Repository(packages, *keys)
    for key in keys:
        key.end()


@pytest.fixture(scope="module")
def bare_root(repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal root of this machine's distribution. The headers of this kernel are the only packages that it finds."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the node is a chroot in namespaces of its own")
    probe = subprocess.run(["unshare", "--mount", "--pid", "--net", "--fork", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no namespaces here: {probe.stderr.decode().strip()}")
    root = minimal_root(tmp_path_factory.mktemp("node") / "root", "python3,python3-apt,systemd,kmod")
    shutil.rmtree(root / "etc/apt/sources.list.d")
    (root / "etc/apt/sources.list.d").mkdir()
    (root / "etc/apt/sources.list").write_text("deb [trusted=yes] file:///srv/distribution ./\n")
    (root / "srv/distribution").mkdir()
    driver_repository.headers(root / "srv/distribution", KERNEL)
    for name in ("shutdown", "update-initramfs"):
        shutil.copy(driver_repository.STANDINS / name, root / "usr/sbin" / name)
    modules = root / "lib/modules" / KERNEL
    modules.mkdir(parents=True)
    for name in ("modules.builtin", "modules.order"):
        (modules / name).touch()
    for argv in (["depmod", KERNEL], ["apt-get", "-qq", "update"]):
        subprocess.run(["chroot", str(root), *argv], check=True, timeout=60, stdin=subprocess.DEVNULL)
    return root


@pytest.fixture
def node(bare_root: Path, repository: Repository, tmp_path: Path) -> GpuNode:
    """A node with a GPU and without a driver, whose CDI specification somebody made by hand."""
    made = GpuNode(bare_root, tmp_path, repository)
    made.shell("mkdir /etc/cdi; echo 'by hand' >/etc/cdi/nvidia.yaml")
    return made


def test_a_pinned_driver_is_installed_held_and_given_up(node: GpuNode) -> None:
    before = node.written()
    dry = node.play("--check", "--diff")
    assert dry.changed > 0
    assert f"linux-headers-{KERNEL} nvidia-open={PINNED}-1" in said(dry)
    assert node.written() == before

    node.play()
    installed = "dpkg-query -W -f '${Package} ${Version} ${db:Status-Want}\\n' nvidia-* libcuda1; apt-mark showhold"
    after_installation = node.shell(installed)
    assert sorted(after_installation.splitlines()) == sorted(
        [*(f"{name} {PINNED}-1 {'hold' if name == DRIVER[0] else 'install'}" for name in DRIVER), DRIVER[0]]
    )
    state = node.written()
    assert content(node.repository.key.armoured).split()[1] in state["/etc/apt/keyrings/gpuckpt-nvidia.asc"]
    etc = node.scratch / "upper/etc"
    assert (
        "Signed-By: /etc/apt/keyrings/gpuckpt-nvidia.asc"
        in (etc / "apt/sources.list.d/gpuckpt-nvidia.sources").read_text()
    )
    assert "blacklist nouveau" in (etc / "modprobe.d/gpuckpt-nouveau.conf").read_text()
    assert f"# Made by gpuckpt for driver {PINNED}" in (etc / "cdi/nvidia.yaml").read_text()
    assert "/etc/systemd/system/multi-user.target.wants/nvidia-persistenced.service" in state
    assert f"  {PINNED}  " in node.kernel("kernel/driver/nvidia/version")
    assert node.shell("nvidia-smi --query-gpu=persistence_mode") == "Enabled\n"
    libraries = sorted(path for path in state if path.startswith("/opt/nvidia-libs/lib"))
    assert [path for path in libraries if path.endswith(PINNED)] == [
        f"/opt/nvidia-libs/{name}.so.{PINNED}"
        for name in ("libcuda", "libnvidia-gpucomp", "libnvidia-ml", "libnvidia-nvvm", "libnvidia-ptxjitcompiler")
    ]
    assert {"/opt/nvidia-libs/libcuda.so.1", "/opt/nvidia-libs/libnvidia-nvvm.so.4"} <= set(libraries)
    assert {"/dev/nvidia0", "/dev/nvidia-uvm"} <= set(state)

    assert node.play().changed == 0
    assert node.play("--check", "--diff").changed == 0
    node.shell("apt-get -qq update && apt-get -qq -y dist-upgrade")
    assert node.shell(installed) == after_installation

    rolled_back = node.play(phase="rollback")
    assert "An installed driver and its packages" in said(rolled_back)
    assert node.shell("apt-mark showhold") == ""
    ours = [path for path in node.written() if re.search(r"gpuckpt|nvidia-libs|/etc/apt/", path)]
    assert ours == []
    assert (etc / "cdi/nvidia.yaml").read_text() == "by hand\n"


def test_a_repository_signed_with_another_key_is_refused(node: GpuNode) -> None:
    before = node.written()
    wrong = {**node.wanted()["nvidia_driver_repository"], "signed_by": str(node.repository.wrong_key.armoured)}
    refused = node.play(nvidia_driver_repository=wrong, check=False)
    assert refused.status == 2
    assert f"file:///srv/nvidia cannot be used with the key {node.repository.wrong_key.armoured}" in said(refused)
    assert "NO_PUBKEY" in refused.output
    assert node.written() == before


def test_a_version_that_the_repository_lacks_is_refused(node: GpuNode) -> None:
    before = node.written()
    named = ["nvidia-open=580.1-1", f"libcuda1={PINNED}-1"]
    refused = node.play("--check", nvidia_driver_packages=named, check=False)
    assert refused.status == 2
    assert "The repository has no nvidia-open=580.1-1; of these packages it has" in said(refused)
    assert f"nvidia-open={NEWER}-1" in said(refused)
    assert node.written() == before


def test_a_missing_key_file_is_named(node: GpuNode) -> None:
    missing = {**node.wanted()["nvidia_driver_repository"], "signed_by": "no/such.asc"}
    refused = node.play(nvidia_driver_repository=missing, check=False)
    assert f"The controller has no file {ROOT}/no/such.asc" in said(refused)


def test_a_loaded_driver_is_replaced_by_an_older_branch_with_a_reboot_where_it_is_allowed(node: GpuNode) -> None:
    node.shell(f"apt-get -qq -y install /srv/distribution/linux-*.deb /srv/nvidia/*_{OTHER_BRANCH}-1_all.deb")
    node.shell("apt-mark hold nvidia-open && modprobe nvidia-uvm")
    before = node.written()
    assert "needs a reboot; set nvidia_driver_allow_reboot." in said(node.play(check=False))
    another = node.kernel("boot_id")
    node.kernel("boot_id", Path("/proc/sys/kernel/random/boot_id").read_text())
    refused = node.play(nvidia_driver_allow_reboot=True, check=False)
    assert refused.status == 2
    assert "this is the controller, which is never rebooted" in said(refused)
    assert node.written() == before
    assert f"  {OTHER_BRANCH}  " in node.kernel("kernel/driver/nvidia/version")

    node.kernel("boot_id", another)
    binary = {**node.wanted()["nvidia_driver_repository"], "signed_by": str(node.repository.key.binary)}
    names = [f"{name}={PINNED}-1" for name in ("nvidia-open", "libcuda1")]
    node.play(nvidia_driver_allow_reboot=True, nvidia_driver_repository=binary, nvidia_driver_packages=names)
    assert node.shell("wc -l </var/log/stand-in-shutdown").strip() == "1"
    assert f"  {PINNED}  " in node.kernel("kernel/driver/nvidia/version")
    assert "/etc/apt/keyrings/gpuckpt-nvidia.gpg" in node.written()
    assert node.shell("apt-mark showhold") == "libcuda1\nnvidia-open\n"

    node.play(phase="rollback")
    assert node.shell("apt-mark showhold") == "nvidia-open\n", "the hold of somebody else stays"


def test_nouveau_is_kept_away_and_a_kernel_that_changed_meanwhile_is_named(node: GpuNode) -> None:
    node.kernel("kernel/modules", NOUVEAU)
    node.shell("update-initramfs; echo 9.9.9-next >/boot/stand-in-next; mkdir /lib/modules/9.9.9-next")
    failed = node.play(nvidia_driver_allow_reboot=True, check=False)
    assert failed.status == 2
    assert f"The kernel changed from {KERNEL} to 9.9.9-next; hold the kernel packages" in said(failed)
    assert node.shell("wc -c </boot/stand-in-initrd").strip() == "0"
    assert node.kernel("kernel/modules") == ""
