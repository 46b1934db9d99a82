# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node has, as data."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.node import info
from ansible.module_utils.ckpt.node.inspection import Node

# Lines of /proc/self/mountinfo of a Debian 12 node, Linux 6.18: a folder that lies below another's mount, and a bind.
MOUNTINFO = """\
28 1 254:0 / / rw,relatime - ext4 /dev/vda rw
90 28 0:61 / /mnt/checkpoint\\040ram rw,nosuid,nodev,noexec,relatime shared:7 - tmpfs gpuckpt rw,size=4194304k,mode=700
91 28 254:0 /srv/models /var/models rw,relatime - ext4 /dev/vda rw
"""
LIMITS = {"nofile": "Max open files", "nproc": "Max processes", "memlock": "Max locked memory"}


def test_mounts_come_with_their_names_decoded(make_node) -> None:
    [_, store, _] = info.describe(make_node({"/proc/self/mountinfo": MOUNTINFO}), "/opt/criu")["mounts"]
    assert (store["target"], store["type"], store["source"]) == ("/mnt/checkpoint ram", "tmpfs", "gpuckpt")
    assert {"noexec", "size=4194304k"} <= set(store["options"])


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/mnt/checkpoint ram", "/mnt/checkpoint ram"),
        ("/mnt/checkpoint ram/golden", "/mnt/checkpoint ram"),
        ("/mnt/checkpoint rampart", "/"),
        ("/var/models/one", "/var/models"),
        ("/linked", "/var/models"),
        ("/", "/"),
    ],
)
def test_the_mount_of_a_path_is_the_innermost_above_it(make_node, path: str, mount: str) -> None:
    folders = ("/mnt/checkpoint ram/golden", "/mnt/checkpoint rampart", "/var/models/one")
    node = make_node({"/proc/self/mountinfo": MOUNTINFO, **{f"{folder}/file": "" for folder in folders}})
    Path(node.path("/linked")).symlink_to(node.path("/var/models"))
    [found] = info.describe(node, "/opt/criu", [path])["paths"].values()
    assert (found["exists"], found["mount"]) == (True, mount)
    assert found["free_bytes"] > 0


@pytest.mark.parametrize("path", ["/nowhere", ""])
def test_a_path_that_is_not_there_has_no_room(make_node, path: str) -> None:
    found = info.describe(make_node({"/proc/self/mountinfo": MOUNTINFO}), "/opt/criu", [path])
    filesystem = "ext4" if path else None
    assert found["paths"] == {path: {"exists": False, "mount": None, "free_bytes": None, "filesystem": filesystem}}


@pytest.mark.parametrize(
    ("path", "filesystem"),
    [
        ("/", "ext4"),
        ("/mnt/checkpoint ram", "tmpfs"),
        ("/mnt/checkpoint ram/not/yet", "tmpfs"),
        ("/upper/one", "overlay"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_nearest_folder(make_node, path: str, filesystem: str) -> None:
    above = "92 28 0:62 / /upper rw - ext4 /dev/vdb rw\n93 92 0:63 / /upper rw - overlay overlay rw\n"
    node = make_node({"/proc/self/mountinfo": MOUNTINFO + above, "/mnt/checkpoint ram/file": "", "/upper/file": ""})
    assert info.place(node, path).filesystem == filesystem


def test_a_build_is_there_if_its_program_can_be_run(make_node) -> None:
    programs = [f"/opt/criu/{name}/libexec/criu" for name in ("0a1b2c", "patched")]
    node = make_node(dict.fromkeys(programs, "#!/bin/sh\n"))
    Path(node.path(programs[0])).chmod(0o755)
    Path(node.path("/opt/criu/stock")).symlink_to("0a1b2c")
    Path(node.path("/opt/criu/distro")).symlink_to("gone")
    assert info.describe(node, "/opt/criu")["builds"] == ["stock"]


def test_complete_builds_are_told_newest_first_and_links_are_none(make_node) -> None:
    names = ("old", "new", "newer")
    node = make_node({"/opt/criu/broken/bin/criu": "", **{f"/opt/criu/{name}/BUILD.json": "{}" for name in names}})
    for second, name in enumerate(names):
        os.utime(node.path(f"/opt/criu/{name}/BUILD.json"), (second, second))
    Path(node.path("/opt/criu/stock")).symlink_to("old")
    Path(node.path("/opt/criu/distro")).symlink_to("gone")
    Path(node.path("/sbin")).mkdir()
    Path(node.path("/sbin/criu")).symlink_to("/opt/criu/stock/bin/criu")
    found = info.describe(node, "/opt/criu", ["/sbin/criu", "/proc"])
    assert found["complete_builds"] == ["newer", "new", "old"]
    assert found["links"] == {
        "/opt/criu/stock": "old",
        "/opt/criu/distro": "gone",
        "/sbin/criu": "/opt/criu/stock/bin/criu",
    }


def test_a_node_without_builds_has_none(make_node) -> None:
    found = info.describe(make_node(), "/opt/criu", ["/sbin/criu"])
    assert (found["complete_builds"], found["links"]) == ([], {})


def test_the_c_library_is_the_one_that_the_node_tells_of() -> None:
    told = subprocess.run(["getconf", "GNU_LIBC_VERSION"], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["glibc", info.glibc()]


def test_records_are_counted_where_there_are_some(make_node) -> None:
    node = make_node({"/runs/r1/records/000001-cold.json": "{}", "/runs/r1/records/000002-restore.json.partial": ""})
    assert info.describe(node, "/opt/criu", records="/runs/r1/records")["records"] == 1
    assert info.describe(node, "/opt/criu", records="/runs/none")["records"] == 0


def test_limits_are_those_of_this_process() -> None:
    found = info.describe(Node(), "/nowhere")
    text = Path("/proc/self/limits").read_text(encoding="utf-8")
    told = {name: re.search(rf"^{title} +\S+ +(\S+)", text, re.M)[1] for name, title in LIMITS.items()}
    assert {name: str(limit) for name, limit in found["limits"].items()} == told
    assert found["sysctls"]["fs.nr_open"] == int(Path("/proc/sys/fs/nr_open").read_text(encoding="utf-8"))
    assert found["memory"]["total"] > found["memory"]["available"] > 0


def test_this_node_has_a_root() -> None:
    assert info.describe(Node(), "/nowhere", ["/"])["paths"]["/"]["exists"]
