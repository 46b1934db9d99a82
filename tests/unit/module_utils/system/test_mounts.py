# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader of mountinfo, with lines of real ones."""

from __future__ import annotations

import os
from pathlib import Path

from ansible.module_utils.ckpt.system import mounts
from ansible.module_utils.ckpt.system.mounts import Mount
from project import ROOT

# Debian 12, Linux 6.18; the second one as runc binds a folder whose source was removed
STORE = (
    "90 28 0:61 / /mnt/checkpoint\\040ram rw,nosuid,nodev,noexec,relatime shared:7 master:3 - "
    "tmpfs gpuckpt rw,size=4194304k,mode=700,huge=always\n"
)
REMOVED = "91 90 254:0 /srv/gone//deleted /data rw,relatime - ext4 /dev/vda rw\n"
SAMPLE = ROOT / "tests" / "fuzz" / "seeds" / "samples" / "mountinfo"


def test_words_have_names_and_names_are_decoded() -> None:
    store, removed = mounts.parse(STORE + REMOVED)
    assert (store.number, store.parent, store.device, store.root) == (90, 28, "0:61", "/")
    assert (store.point, store.fstype, store.source) == ("/mnt/checkpoint ram", "tmpfs", "gpuckpt")
    assert store.options >= {"rw", "noexec", "nosuid", "nodev", "huge=always", "size=4194304k"}
    assert removed == Mount(
        91, 90, "254:0", "/srv/gone//deleted", "/data", frozenset({"rw", "relatime"}), "ext4", "/dev/vda"
    )


def test_every_line_of_a_recorded_node_is_a_mount() -> None:
    text = SAMPLE.read_text(encoding="utf-8")
    found = list(mounts.parse(text))
    assert len(found) == len(text.splitlines())
    assert found[0].fstype == "overlay"
    assert found[0].options >= {"lowerdir=/lower", "rw"}


def test_lines_of_another_form_are_left_out() -> None:
    assert list(mounts.parse("90 28 0:61 / /mnt\n\n90 28 - tmpfs\n-\n" + REMOVED.split(" - ")[0])) == []
    # neither a carriage return nor a blank of Unicode ends a word, and the kernel writes both as they are
    (odd,) = mounts.parse(REMOVED.replace("/data", "/da\r\u00a0\u2028ta"))
    assert odd.point == "/da\r\u00a0\u2028ta"


def test_a_file_system_without_a_source() -> None:
    (found,) = mounts.parse("91 90 0:7 / /data rw - tmpfs  rw,size=1k\n")
    assert (found.source, found.options) == ("", frozenset({"rw", "size=1k"}))


def test_mounts_are_counted_where_ismount_is_blind(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    line = "90 27 254:0 /srv/images {} rw,relatime - ext4 /dev/vda rw\n"
    table.write_text(line.format("/a/checkpoint") * 2 + line.format("/a/checkpoint/deeper"))
    assert mounts.layers_at("/a/checkpoint", str(table)) == 2
    assert mounts.layers_at("/a", str(table)) == 0


def test_this_process_sees_its_own_proc() -> None:
    proc = [mount for mount in mounts.of_process("self") if mount.point == "/proc"]
    assert proc
    assert proc[-1].fstype == "proc"
    assert list(mounts.of_process(os.getpid())) == list(mounts.of_process("self"))
    assert "/proc" in mounts.points()
