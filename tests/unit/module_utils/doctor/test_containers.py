# SPDX-License-Identifier: GPL-3.0-or-later
import json

import pytest
from ansible.module_utils.ckpt import doctor
from ansible.module_utils.ckpt.doctor import containers
from ansible.module_utils.ckpt.parsing import FormatError

# `runc --version` and `crun --version` of Debian 12.
RUNC = "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\n"
CRUN = "crun version 1.8.1\nspec: 1.0.0\n+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +YAJL\n"
# The same of Debian 13, whether or not there is libcriu.
CRUN_WITH_CRIU = (
    "crun version 1.21\ncommit: 10269840aa07fb7e6b7e1acff6198692d8ff5c88\nrundir: /run/crun\nspec: 1.0.0\n"
    "+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +CRIU +WASM:wasmedge +YAJL\n"
)


@pytest.mark.parametrize(
    ("name", "version", "mode", "libcriu", "state"),
    [
        ("runc", RUNC, "hybrid", False, "ok"),
        ("crun", CRUN, "v2", True, "fail"),
        ("crun", CRUN_WITH_CRIU, "hybrid", True, "fail"),
        ("crun", CRUN_WITH_CRIU, "v2", False, "fail"),
        ("crun", CRUN_WITH_CRIU, "v2", True, "ok"),
    ],
)
def test_runtimes(name, version, mode, libcriu, state):
    assert containers.judge_runtime(name, version, mode, libcriu).state == state


def rule(action, *names, **more):
    return {"names": list(names), "action": action, **more}


def profile(*rules, default="SCMP_ACT_ERRNO", errno=38):
    return {"defaultAction": default, "defaultErrnoRet": errno, "syscalls": list(rules)}


CALLS = sorted(containers.IO_URING_CALLS)


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (profile(), "ok"),
        (profile(rule("SCMP_ACT_ERRNO", *CALLS, errnoRet=38), errno=1), "ok"),
        (profile(rule("SCMP_ACT_ERRNO", *CALLS), errno=38), "fail"),  # a rule without errnoRet answers EPERM
        (profile(rule("SCMP_ACT_ALLOW", "io_uring_enter")), "fail"),
        (profile(rule("SCMP_ACT_ALLOW", *CALLS, includes={"caps": ["CAP_SYS_ADMIN"]})), "ok"),
        (profile(default="SCMP_ACT_ALLOW"), "fail"),
    ],
)
def test_profiles(make_node, content, state):
    context = doctor.CheckContext(make_node({"/profile.json": json.dumps(content)}), seccomp_path="/profile.json")
    assert containers.seccomp(context).state == state


def test_a_broken_profile_is_told(make_node):
    context = doctor.CheckContext(make_node({"/profile.json": "{"}), seccomp_path="/profile.json")
    assert "is not JSON" in containers.seccomp(context).detail


def test_the_last_file_with_limits_decides():
    first = '[containers]\ndefault_ulimits = ["nofile=1000:2000", "nproc=1:1"]\n'
    last = '[containers]\ndefault_ulimits = ["nofile=512:1024"]\n'
    assert containers.default_nofile([first, "[engine]\n"]) == 2000
    assert containers.default_nofile([first, last]) == 1024
    assert containers.default_nofile(["[engine]\n"]) is None


# /sys/kernel/security/apparmor/profiles: lines as the kernel writes them, names as Ubuntu 24.04 has them
PROFILES = "podman (unconfined)\nrunc (unconfined)\n/usr/bin/man (enforce)\n"
LOADED = "containers-default-0.57.4-apparmor1 (enforce)\n" + PROFILES
SWITCH, LIST = containers.APPARMOR_SWITCH, containers.APPARMOR_PROFILES


@pytest.mark.parametrize(
    ("programs", "files", "state", "word"),
    [
        (["apparmor_parser"], {SWITCH: "Y\n", LIST: LOADED}, "skip", "no podman"),
        (["podman"], {}, "ok", "not in use"),
        (["podman"], {SWITCH: "N\n"}, "ok", "not in use"),
        (["podman"], {SWITCH: "Y\n", LIST: PROFILES}, "ok", "no apparmor_parser"),
        (["podman", "apparmor_parser"], {SWITCH: "Y\n", LIST: LOADED}, "ok", "containers-default-0.57.4-apparmor1"),
        (["podman", "apparmor_parser"], {SWITCH: "Y\n", LIST: PROFILES}, "warn", "no profile"),
        (["podman", "apparmor_parser"], {SWITCH: "Y\n"}, "warn", "cannot be read"),
    ],
)
def test_a_restore_needs_the_profile_of_podman(make_node, monkeypatch, programs, files, state, word):
    node = make_node(files)
    monkeypatch.setattr(type(node), "which", lambda _, name: f"/usr/bin/{name}" if name in programs else None)
    verdict = containers.apparmor(doctor.CheckContext(node))
    assert verdict.state == state
    assert word in verdict.detail


@pytest.mark.parametrize("content", ['{"syscalls": 3}', '{"syscalls": [{"names": "io_uring_setup"}]}', "[" * 100000])
def test_a_profile_that_is_none_is_told(make_node, content):
    context = doctor.CheckContext(make_node({"/profile.json": content}), seccomp_path="/profile.json")
    assert containers.seccomp(context).state == "fail"


@pytest.mark.parametrize("text", ["[containers", '[containers]\ndefault_ulimits = "nofile=1"\n', "a = 1_\n"])
def test_a_configuration_that_is_none(text):
    with pytest.raises(FormatError):
        containers.default_nofile([text])


@pytest.mark.parametrize("text", ["", "{}", '{"host": {"ociRuntime": {"name": 3}}}', '{"host": []}'])
def test_what_podman_info_does_not_say(text):
    with pytest.raises(FormatError):
        containers.named_runtime(text)
