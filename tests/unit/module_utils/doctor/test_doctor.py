# SPDX-License-Identifier: GPL-3.0-or-later
import os
import socket
from pathlib import Path

import pytest
from ansible.module_utils.ckpt import doctor
from ansible.module_utils.ckpt.doctor import containers, criu, gpu, host, store, trial  # noqa: F401  register checks
from ansible.module_utils.ckpt.system.commands import Commands


def finding(context, group, name):
    return next(one for one in doctor.examine(context, [group]) if one.id == name)


def test_ids_are_unique_and_every_group_has_checks():
    ids = [one.id for one in doctor.REGISTRY]
    assert len(ids) == len(set(ids))
    assert {one.group for one in doctor.REGISTRY} == set(doctor.GROUPS)


def test_findings_come_in_the_order_of_the_groups(make_node):
    groups = [
        one.group for one in doctor.examine(doctor.CheckContext(make_node(), trial=False), ["gpu", "store", "criu"])
    ]
    assert list(dict.fromkeys(groups)) == ["criu", "store", "gpu"]


def test_a_check_that_breaks_is_a_failure_of_its_own(make_node, monkeypatch):
    def broken(_patient):
        raise KeyError("ociRuntime")

    monkeypatch.setattr(doctor, "REGISTRY", [doctor.Check("x", "host", "a thing", "it matters", broken)])
    (found,) = doctor.examine(doctor.CheckContext(make_node()))
    assert found.state == "fail"
    assert found.detail == "the check broke: KeyError: 'ociRuntime'"


def test_the_matrix_gives_reason_and_mend_of_what_is_not_well():
    findings = [
        doctor.Finding("a", "host", "kernel", "ok", "6.18", "why a", None, None),
        doctor.Finding("b", "store", "store", "fail", "not mounted", "why b", "mount it", "mount …"),
    ]
    text = "\n".join(doctor.matrix(findings))
    assert "why a" not in text
    assert "why:  why b" in text
    assert "fix:  mount it  (mount …)" in text
    assert doctor.count(findings) == {"ok": 1, "warn": 0, "fail": 1, "skip": 0}


def test_nothing_to_find_is_told_everywhere_with_a_mend(make_node):
    findings = doctor.examine(doctor.CheckContext(make_node(), trial=False))
    assert not [one for one in findings if "check broke" in one.detail]
    assert {one.id for one in findings if one.state == "fail"} >= {
        "kernel",
        "criu-front",
        "criu-version",
        "criu-builds",
        "store",
    }
    assert all(one.fix for one in findings if one.state in ("warn", "fail"))


def test_a_taken_port_names_its_holder(make_node):
    with socket.create_server(("127.0.0.1", 0)) as server:
        context = doctor.CheckContext(doctor.Node(), port=server.getsockname()[1])
        found = finding(context, "server", "port")
    assert found.state == "fail"
    assert f"(pid {os.getpid()})" in found.detail
    assert finding(doctor.CheckContext(make_node()), "server", "port").state == "ok"


@pytest.mark.parametrize(
    ("options", "mode", "state", "detail"),
    [
        ("rw,nosuid,nodev,noexec - tmpfs x rw,huge=always", 0o700, "ok", "huge=always"),
        ("rw,nosuid,nodev - tmpfs x rw", 0o700, "warn", "without noexec"),
        ("rw,nosuid,nodev,noexec - tmpfs x rw", 0o755, "fail", "0755"),
        ("rw - ext4 /dev/vda rw", 0o700, "warn", "is ext4"),
    ],
)
def test_stores(make_node, tmp_path, options, mode, state, detail):
    (tmp_path / "ram").mkdir(mode=mode)
    node = make_node({"/proc/self/mountinfo": f"1 2 0:3 / /ram {options}\n"})
    found = finding(doctor.CheckContext(node, store_path="/ram"), "store", "store")
    assert found.state == state
    assert detail in found.detail


# Fakes of criu, to see that the trial tells a failure from a success, and cleans up.
CANNOT_DUMP = """#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = --images-dir ] && dir=$2; shift; done
echo "(00.01) Error (criu/tty.c:1): RLIMIT_NOFILE is low" > $dir/dump.log
echo "(00.02) Error (criu/sockets.c:500): sockets: Can't get 1:16 opt: Protocol not available" >> $dir/dump.log
exit 1
"""
LOSES_IT = """#!/bin/sh
[ "$1" = dump ] && kill -9 "$3"
exit 0
"""


@pytest.mark.parametrize(
    ("script", "detail"),
    [(CANNOT_DUMP, "dump failed: (00.02) Error (criu/sockets.c:500)"), (LOSES_IT, "it does not answer on its port")],
)
def test_a_criu_that_cannot_is_found_out(tmp_path, script, detail):
    fake = tmp_path / "criu"
    fake.write_text(script)
    fake.chmod(0o755)
    before = set(Path("/proc").glob("[0-9]*"))
    verdict = trial.try_listener(str(fake), Commands(), str(tmp_path))
    assert verdict.state == "fail"
    assert detail in verdict.detail
    assert "RLIMIT_NOFILE" not in verdict.detail
    assert list(tmp_path.iterdir()) == [fake]
    left = [path for path in set(Path("/proc").glob("[0-9]*")) - before if "create_server" in command_line(path)]
    assert not left


def command_line(path):
    try:
        return (path / "cmdline").read_text()
    except OSError:
        return ""
