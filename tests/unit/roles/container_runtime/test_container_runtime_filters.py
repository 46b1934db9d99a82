# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits that a machine grants, and runtimes that it can have."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.ckpt.node import info
from ansible.module_utils.ckpt.node.inspection import Node
from project import filters_of

ROLE = filters_of("container_runtime")
UNLIMITED = {"nofile": "unlimited", "nproc": "unlimited", "memlock": "unlimited"}
ASKED = {"nofile": 1048576, "nproc": "unlimited", "memlock": "unlimited"}
HOST = {"name": "node1", "user_id": 0, "distribution": "Debian 12", "supported": ["Debian 12", "Ubuntu 24.04"]}
DIGEST = f"registry.example/image@sha256:{'0' * 64}"
TREE = {"glibc": "2.36", "machine": "x86_64"}
MACHINE = {"name": "node1", "machine": "x86_64"}
WANTED = {"oci_runtime": "runc", "rootfs": "/run/gpuckpt/rootfs"}


def node(may_raise: bool, pid_max: int | None = 4194304, **limits: Any) -> dict[str, Any]:
    """What a node tells of its limits."""
    return {
        "capabilities": {"CAP_SYS_RESOURCE": may_raise},
        "limits": {"nofile": 524288, "nproc": 95000, "memlock": 8388608, **limits},
        "sysctls": {"fs.nr_open": 1048576, "kernel.pid_max": pid_max},
    }


@pytest.mark.parametrize(
    ("wanted", "found", "granted"),
    [
        (ASKED, node(may_raise=True), [1048576, 4194304, -1]),
        (UNLIMITED, node(may_raise=True), [1048576, 4194304, -1]),
        (ASKED, node(may_raise=False), [524288, 95000, 8388608]),
        (UNLIMITED, node(may_raise=False, nproc="unlimited", memlock="unlimited"), [524288, 4194304, -1]),
        (UNLIMITED, node(may_raise=True, pid_max=None), [1048576, -1, -1]),
        # an inventory may have them as words
        ({"nofile": "4096", "nproc": "4096", "memlock": "1048576"}, node(may_raise=False), [4096, 4096, 1048576]),
    ],
)
def test_limits_are_cut_to_what_the_machine_grants(wanted, found, granted) -> None:
    assert list(ROLE.container_runtime_limits(wanted, found).values()) == granted


def test_limits_follow_from_what_the_module_tells_of_this_machine() -> None:
    found = ROLE.container_runtime_limits(UNLIMITED, info.describe(Node(), "/nowhere"))
    assert 0 < found["nofile"] <= info.describe(Node(), "/nowhere")["sysctls"]["fs.nr_open"]


@pytest.mark.parametrize("image", ["", DIGEST])
@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_settings_that_can_work_are_taken(image: str, runtime: str) -> None:
    assert ROLE.container_runtime_problems({"oci_runtime": runtime, "image_pull": image}, HOST) == []


def test_every_mistake_in_the_settings_is_named() -> None:
    asked = {"oci_runtime": "kata", "image_pull": "registry.example/image:latest"}
    problems = ROLE.container_runtime_problems(asked, HOST | {"user_id": 1000, "distribution": "Fedora 40"})
    assert [text.split()[:2] for text in problems] == [
        ["container_runtime", "needs"],
        ["container_runtime", "knows"],
        ["container_runtime_oci_runtime", "is"],
        ["container_runtime_image_pull", "must"],
    ]
    assert "knows Debian 12, Ubuntu 24.04, but node1 runs Fedora 40." in problems[1]


@pytest.mark.parametrize("image", [f"{DIGEST}0", DIGEST[:-1], f"{DIGEST}\n", DIGEST.upper(), f"{DIGEST}:latest"])
def test_an_image_needs_the_whole_digest(image: str) -> None:
    assert len(ROLE.container_runtime_problems({"oci_runtime": "runc", "image_pull": image}, HOST)) == 1


def test_what_crun_lacks_is_said_in_words() -> None:
    assert ROLE.container_runtime_crun_lacks({"crun_lacks": []}) == []
    said = ROLE.container_runtime_crun_lacks({"crun_lacks": ["criu", "libcriu", "cgroup-v2"]})
    assert [word in text for word, text in zip(["+CRIU", "libcriu2", "v2 alone"], said, strict=True)] == [True] * 3


@pytest.mark.parametrize("libc", ["2.36", "2.41", "3"])
def test_podman_of_a_bundle_that_fits_is_taken(libc: str) -> None:
    assert ROLE.container_runtime_unfit(TREE, {"glibc": libc}, WANTED, MACHINE) == []


@pytest.mark.parametrize(("libc", "said"), [("2.4", "has 2.4."), ("2.35", "has 2.35."), (None, "has 0.")])
def test_podman_of_a_bundle_needs_its_c_library(libc: str | None, said: str) -> None:
    [problem] = ROLE.container_runtime_unfit(TREE, {"glibc": libc}, WANTED, MACHINE)
    assert problem.startswith("podman of the bundle needs glibc 2.36, and node1 ")
    assert said in problem


def test_all_that_stands_against_podman_of_a_bundle_is_named() -> None:
    asked = {"oci_runtime": "crun", "rootfs": ""}
    problems = ROLE.container_runtime_unfit(TREE, {"glibc": "2.36"}, asked, MACHINE | {"machine": "aarch64"})
    assert problems[0] == "podman of the bundle is for x86_64, and node1 is aarch64."
    assert "container_runtime_oci_runtime is crun. Set it to runc." in problems[1]
    assert "Set gpuckpt_rootfs" in problems[2]


def test_mounts_below_a_folder_are_unmounted_from_the_inside() -> None:
    targets = ["/", "/store", "/store/overlay", "/storey/one", "/store/overlay/merged", "/store/overlay"]
    mounts = [{"target": target} for target in targets]
    found = ROLE.container_runtime_mounted_below(mounts, "/store")
    assert found == ["/store/overlay/merged", "/store/overlay", "/store/overlay"]
