# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether crun can checkpoint."""

from __future__ import annotations

import pytest
from ansible.module_utils.ckpt.node import oci

# the last line of `crun --version` of Debian 12 and of Debian 13
WITHOUT = "crun version 1.8.1\n+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +YAJL\n"
WITH = "crun version 1.21\n+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +CRIU +YAJL\n"
LIBRARIES = "\tlibcriu.so.2 (libc6,x86-64) => /lib/x86_64-linux-gnu/libcriu.so.2\n"
V2 = "30 28 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
HYBRID = V2 + "31 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


@pytest.mark.parametrize(
    ("version", "libraries", "mounts", "lacks"),
    [
        (WITH, LIBRARIES, V2, []),
        (WITHOUT, LIBRARIES, V2, ["criu"]),
        (None, LIBRARIES, V2, ["criu"]),
        (WITH, "\tlibcriu.so.1 => /lib/libcriu.so.1\n", V2, ["libcriu"]),
        (WITH, LIBRARIES, HYBRID, ["cgroup-v2"]),
        (WITHOUT, "", HYBRID, ["criu", "libcriu", "cgroup-v2"]),
    ],
)
def test_all_that_is_lacking_is_named(make_node, version, libraries, mounts, lacks) -> None:
    outputs = {"ldconfig -p": (0, libraries)} | ({"crun --version": (0, version)} if version else {})
    assert oci.node_lacks(make_node({"/proc/self/mountinfo": mounts}, outputs)) == lacks
