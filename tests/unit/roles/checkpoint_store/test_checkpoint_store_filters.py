# SPDX-License-Identifier: GPL-3.0-or-later
"""How large the store is, how it is mounted, and when it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.ckpt.system.mounts import parse
from project import filters_of

ROLE = filters_of("checkpoint_store")
GIB = 1 << 30
PATH = "/mnt/checkpoint-ram"
ASKED: dict[str, Any] = {"path": PATH, "size_mib": 4096, "workload_mib": 2048, "noexec": True, "huge": "within_size"}
HOST = {"name": "node1", "user_id": 0}
# as the kernel of Linux 6.18 tells of the mount that the role makes
MOUNTED = (
    "90 28 0:61 / /mnt/checkpoint-ram rw,nosuid,nodev,noexec,relatime shared:7 - tmpfs gpuckpt-store "
    "rw,size=4194304k,mode=700,huge=within_size,inode64\n"
)
ROOT_MOUNT = "28 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"


def mount(source: str, *options: str) -> dict[str, Any]:
    """Something that is mounted where the store belongs."""
    return {"target": PATH, "type": "tmpfs", "source": source, "options": list(options)}


AS_ASKED = [mount("gpuckpt-store", *one.options) for one in parse(ROOT_MOUNT + MOUNTED) if one.point == PATH]


def node(*mounts: dict[str, Any], memory_gib: int = 16) -> dict[str, Any]:
    """A node with mounts and memory."""
    return {"memory": {"total": memory_gib * GIB, "available": GIB}, "mounts": list(mounts)}


def plan_of(found: dict[str, Any] | None = None, **change: Any) -> dict[str, Any]:
    """The plan for a node."""
    plan: dict[str, Any] = ROLE.checkpoint_store_plan(found or node(), {**ASKED, **change})
    return plan


def problems(found: dict[str, Any] | None = None, host: dict[str, Any] | None = None, **change: Any) -> list[str]:
    """What stands against settings on a node."""
    told: list[str] = ROLE.checkpoint_store_problems(plan_of(found, **change), {**ASKED, **change}, host or HOST)
    return told


@pytest.mark.parametrize(
    ("size", "memory_gib", "size_mib"),
    [("auto", 8, 4096), ("auto", 16, 8192), ("auto", 512, 16384), (4096, 8, 4096), ("4096", 8, 4096), ("4 GiB", 8, 0)],
)
def test_the_size_is_half_of_the_memory_unless_it_is_given(size: Any, memory_gib: int, size_mib: int) -> None:
    assert plan_of(node(memory_gib=memory_gib), size_mib=size)["size_mib"] == size_mib


def test_a_mount_that_is_as_it_was_asked_for_lacks_nothing() -> None:
    plan = plan_of(node(*AS_ASKED))
    assert (plan["mounted"], plan["ours"], plan["lacking"]) == (True, True, [])
    assert problems(node(*AS_ASKED)) == []


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ({"size_mib": 2048}, ["size=2097152k"]),
        ({"huge": "always"}, ["huge=always"]),
        ({"huge": "never"}, []),
        ({"noexec": False}, []),
    ],
)
def test_options_that_are_not_in_force_are_named(change: dict[str, Any], lacking: list[str]) -> None:
    assert plan_of(node(*AS_ASKED), **change)["lacking"] == lacking


def test_nothing_is_mounted_on_a_fresh_node() -> None:
    plan = plan_of()
    assert (plan["mounted"], plan["ours"], plan["in_force"]) == (False, False, [])
    assert plan["lacking"][:3] == ["nosuid", "nodev", "mode=700"]
    assert plan["options"] == ["mode=0700", "nosuid", "nodev", "noexec", "size=4096m", "huge=within_size"]


def test_the_mount_on_top_counts() -> None:
    covered = node(mount("gpuckpt-store", "nosuid"), mount("somebody"))
    assert (plan_of(covered)["mounted_source"], plan_of(covered)["ours"]) == ("somebody", False)


@pytest.mark.parametrize("source", ["gpuckpt-store", None])
def test_settings_that_can_work_are_taken(source: str | None) -> None:
    found = node(mount(source)) if source else node()
    assert problems(found) == []
    assert problems(found, size_mib="auto", huge="never") == []


@pytest.mark.parametrize(
    ("found", "host", "change", "said"),
    [
        (node(), {**HOST, "user_id": 1000}, {}, "checkpoint_store needs root on node1."),
        (node(), HOST, {"path": "/"}, "checkpoint_store_path is /; it must be an absolute path"),
        (node(), HOST, {"path": "store"}, "checkpoint_store_path is store; it must be"),
        (node(), HOST, {"path": "/mnt/a store"}, "checkpoint_store_path is /mnt/a store; it must be"),
        (node(), HOST, {"path": "/mnt/store\n"}, "checkpoint_store_path is /mnt/store\n; it must be"),
        (
            node(),
            HOST,
            {"size_mib": 63},
            "checkpoint_store_size_mib is 63; it must be auto or a number of MiB from 64.",
        ),
        (node(), HOST, {"size_mib": "much"}, "checkpoint_store_size_mib is much; it must be"),
        (node(), HOST, {"huge": "some"}, "is some; it must be never, within_size, advise or always."),
        (
            node(memory_gib=4),
            HOST,
            {},
            "A checkpoint store of 4096 MiB does not fit into the memory of node1 (4096 MiB) next to the workload (2048 MiB)",
        ),
        (node(mount("proc")), HOST, {}, f"{PATH} is a mount of proc already, which this role did not make."),
    ],
)
def test_each_mistake_is_named(found, host, change, said: str) -> None:
    [problem] = problems(found, host, **change)
    assert said in problem
