# SPDX-License-Identifier: GPL-3.0-or-later
import pytest
from ansible.module_utils.ckpt.node import inspection
from ansible.module_utils.ckpt.versions import version_tuple

# Debian 12, Linux 6.18, hybrid cgroups: lines of /proc/self/mountinfo of the CPU box.
MOUNTINFO = """\
23 28 0:22 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
31 24 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
40 31 0:35 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
32 31 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
90 28 0:61 / /mnt/checkpoint\\040ram rw,nosuid,nodev,noexec,relatime shared:7 - tmpfs gpuckpt rw,size=4194304k,mode=700,huge=always
"""


def test_the_uppermost_mount_of_a_folder(make_node):
    node = make_node({"/proc/self/mountinfo": MOUNTINFO + MOUNTINFO.replace("gpuckpt", "above")})
    mount = inspection.mount_at(node, "/mnt/checkpoint ram")
    assert mount is not None
    assert (mount.fstype, mount.source) == ("tmpfs", "above")
    assert inspection.mount_at(node, "/mnt") is None


@pytest.mark.parametrize(
    ("lines", "mode"),
    [
        (slice(0, 4), "hybrid"),
        (slice(3, 4), "v1"),
        (slice(2, 3), "v2"),
        (slice(0, 1), "none"),
    ],
)
def test_cgroups(make_node, lines, mode):
    node = make_node({"/proc/self/mountinfo": "\n".join(MOUNTINFO.splitlines()[lines])})
    assert inspection.cgroups(node) == mode


def test_capabilities_of_the_cpu_box_lack_one(make_node):
    node = make_node({"/proc/self/status": "Name:\tcat\nCapEff:\t000001fffeffffff\n"})
    assert [name for name, have in inspection.capabilities(node).items() if not have] == ["CAP_SYS_RESOURCE"]


def test_thp_is_the_word_in_brackets(make_node):
    node = make_node({"/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n"})
    assert inspection.thp(node) == {"enabled": "madvise"}


def test_memory_is_in_bytes(make_node):
    node = make_node({"/proc/meminfo": "MemTotal:       24684084 kB\nMemAvailable:   23011708 kB\n"})
    assert inspection.memory_bytes(node) == {"total": 24684084 * 1024, "available": 23011708 * 1024}


def test_what_is_missing_is_none(make_node):
    node = make_node()
    assert inspection.sysctl(node, "kernel.io_uring_disabled") is None
    assert node.which("criu") is None
    assert inspection.program_version(node, "podman", "--version") is None


def test_versions_compare_by_number(make_node):
    node = make_node(outputs={"criu --version": (0, "Version: 4.10.1\nGitID: v4.10.1\n")})
    found = inspection.program_version(node, "criu", "--version")
    assert found == "4.10.1"
    assert version_tuple(found) > version_tuple("4.2.1")
