# SPDX-License-Identifier: GPL-3.0-or-later
"""A virtual machine of this machine's distribution that boots systemd: the processor is emulated, no KVM is needed."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from plays import ANSIBLE_PLAYBOOK, ROOT, Played, minimal_root, perform

PACKAGES = "systemd,systemd-sysv,dbus,udev,openssh-server,python3,python3-apt,iproute2,iptables,curl,ca-certificates,procps,linux-image-amd64"
SCRATCH = ROOT / "build" / "vm"
DISK_MIB = 6144
MEMORY_MIB = 3072
BOOT_S = 600
ROOT_S = 1800
# an emulated processor takes its time
PLAY_S = 3600
SETUP = """
set -e
echo vm > /etc/hostname
echo '127.0.0.1 localhost vm' > /etc/hosts
mkdir -p /root/.ssh /var/log/journal /etc/systemd/network
chmod 700 /root/.ssh
cp /key.pub /root/.ssh/authorized_keys
echo '/dev/vda / ext4 defaults 0 1' > /etc/fstab
printf '[Match]\\nType=ether\\n[Network]\\nDHCP=yes\\n' > /etc/systemd/network/wired.network
systemctl enable systemd-networkd ssh
"""


@dataclass
class Machine:
    """A machine that runs, reached over ssh at a port of loopback."""

    port: int
    key: Path
    inventory: Path

    @property
    def _options(self) -> list[str]:
        quiet = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        return ["-i", str(self.key), "-o", "ConnectTimeout=10", *quiet]

    def run(self, command: str, check: bool = True, timeout_s: float = 600) -> str:
        """What a command says there. Raises AssertionError if it fails and `check` is set."""
        argv = ["ssh", *self._options, "-p", str(self.port), "root@127.0.0.1", command]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def play(self, playbook: str, *arguments: str) -> Played:
        """Runs a play on it."""
        done = perform([ANSIBLE_PLAYBOOK, "-i", self.inventory, playbook, *arguments], PLAY_S)
        assert done.status == 0, f"{playbook} ended with {done.status}:\n{done.output[-6000:]}"
        return done

    def boot_id(self) -> str:
        """What tells this boot from another; empty while it cannot be reached."""
        with suppress(subprocess.TimeoutExpired):
            return self.run("cat /proc/sys/kernel/random/boot_id", check=False, timeout_s=30)
        return ""

    def wait_booted(self, other_than: str = "") -> None:
        """Until ssh answers, after a reboot from another boot, and systemd has started all that it starts."""
        deadline = time.monotonic() + BOOT_S
        while self.boot_id() in ("", other_than):
            assert time.monotonic() < deadline, "it does not boot"
            time.sleep(2)
        self.run("systemctl is-system-running --wait", check=False)

    def reboot(self) -> None:
        """Shuts it down in good order, and waits until it is up again."""
        before = self.boot_id()
        self.run("systemctl reboot", check=False)
        self.wait_booted(before)


@contextmanager
def booted(scratch: Path) -> Iterator[Machine]:
    """A machine that was never used. Its root is made once for each list of packages."""
    scratch.mkdir(parents=True, exist_ok=True)
    key, disk = scratch / "key", scratch / "disk.ext4"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    made = _base(scratch, key)
    shutil.copy(made.with_suffix(".ext4"), disk)
    port = _free_port()
    machine = Machine(port, key, _inventory(scratch, port, key))
    with (
        (scratch / "console.log").open("wb") as console,
        subprocess.Popen(_qemu(made, disk, port), stdout=console) as vm,
    ):
        try:
            machine.wait_booted()
            yield machine
        finally:
            vm.kill()
            disk.unlink()


def _base(scratch: Path, key: Path) -> Path:
    """Kernel, initial memory disk and root of a machine, by the same name with different endings."""
    name = hashlib.sha256(f"{PACKAGES}{SETUP}{DISK_MIB}{key.with_suffix('.pub').read_text()}".encode()).hexdigest()[:12]
    made = scratch / name
    if made.with_suffix(".ext4").exists():
        return made
    # what a mmdebstrap that was killed has left may have mounts in it
    root = Path(tempfile.mkdtemp(prefix="root.", dir=scratch))
    root.chmod(0o755)
    minimal_root(root, PACKAGES, ROOT_S)
    shutil.copy(key.with_suffix(".pub"), root / "key.pub")
    subprocess.run(["chroot", root, "/bin/sh", "-c", SETUP], check=True)
    for kind, ending in (("vmlinuz", ".kernel"), ("initrd.img", ".initrd")):
        shutil.copy(next((root / "boot").glob(f"{kind}-*")), made.with_suffix(ending))
    partial = made.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, partial, f"{DISK_MIB}M"], check=True)
    shutil.rmtree(root)
    partial.rename(made.with_suffix(".ext4"))
    return made


def _qemu(made: Path, disk: Path, port: int) -> list[str]:
    return [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(MEMORY_MIB)),
        *("-nographic", "-serial", "mon:stdio"),
        *("-kernel", str(made.with_suffix(".kernel")), "-initrd", str(made.with_suffix(".initrd"))),
        *("-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0"),
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
        *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=net"),
    ]


def _inventory(scratch: Path, port: int, key: Path) -> Path:
    arguments = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    path = scratch / "inventory.ini"
    path.write_text(
        f"vm ansible_host=127.0.0.1 ansible_port={port} ansible_user=root ansible_ssh_private_key_file={key} "
        f"ansible_python_interpreter=/usr/bin/python3 ansible_ssh_common_args='{arguments}'\n"
    )
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
