# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that cannot end well is refused, with everything that stands against it."""

from __future__ import annotations

from typing import Any

import pytest
from ckpt_bench_problems import ckpt_bench_problems
from ckpt_lanes import ckpt_lanes
from ckpt_plan import ckpt_plan

MIB = 1 << 20
LANES: list[dict[str, Any]] = [
    {"name": "cold", "start": "cold", "runtime": "process"},
    {"name": "stock", "start": "restore", "runtime": "process", "build": "stock"},
    {"name": "tar", "start": "restore", "runtime": "process", "build": "patched", "source": "tar"},
    {"name": "disk", "start": "restore", "runtime": "process", "build": "stock", "source": "disk"},
]
SERVER = {"name": "s", "command": ["serve"], "port": 18080}
PLAN = ckpt_plan(ckpt_lanes(LANES), SERVER, "r1", "/store", "/disk", 100 * MIB)
MODEL = {"exists": True, "mount": "/", "free_bytes": 0}
STORE = {"exists": True, "mount": "/store", "free_bytes": 300 * MIB}
NODE: dict[str, Any] = {
    "builds": ["stock", "patched", "current"],
    "paths": {"/model": MODEL, "/store": STORE},
    "records": 0,
}
RUN = {"id": "r1", "host": "node1", "folder": "/runs/r1", "continued": False, "model": "/model", "store": "/store"}


def node(**paths: dict[str, Any]) -> dict[str, Any]:
    """A node whose model or store is another."""
    return {**NODE, "paths": {**NODE["paths"], **{f"/{name}": value for name, value in paths.items()}}}


def test_a_node_that_has_everything_is_taken() -> None:
    assert ckpt_bench_problems(PLAN, NODE, RUN) == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (node(model={"exists": False, "mount": None, "free_bytes": None}), "there is nothing at /model: run provision"),
        ({**NODE, "builds": ["current"]}, "that node1 lacks (stock, patched): run provision.yml"),
        ({**NODE, "builds": ["stock"]}, "that node1 lacks (patched): run provision.yml"),
        ({**NODE, "records": 4}, "4 records of an earlier run r1 lie in /runs/r1 on node1: choose another"),
        (
            node(store={"exists": True, "mount": "/", "free_bytes": 1 << 40}),
            "the checkpoint store /store is not mounted",
        ),
        (
            node(store={"exists": False, "mount": None, "free_bytes": None}),
            "the checkpoint store /store is not mounted",
        ),
        (node(store={**STORE, "free_bytes": 299 * MIB}), "need about 300.00 MB, and /store has 299.00 MB free"),
    ],
)
def test_what_stands_against_it_is_named(found: dict[str, Any], said: str) -> None:
    [problem] = ckpt_bench_problems(PLAN, found, RUN)
    assert said in problem


def test_everything_is_named_at_once() -> None:
    nothing = {"exists": False, "mount": None, "free_bytes": None}
    poor = {**node(model=nothing, store=nothing), "builds": [], "records": 1}
    assert len(ckpt_bench_problems(PLAN, poor, RUN)) == 4


def test_a_continued_run_has_records_and_some_of_its_checkpoints() -> None:
    made = [lane["checkpoint_dir"] for lane in PLAN["lanes"].values() if lane["name"] in ("stock", "disk")]
    full = {**node(store={**STORE, "free_bytes": 200 * MIB}), "records": 7}
    assert ckpt_bench_problems(PLAN, full, {**RUN, "continued": True}, made) == []
    [problem] = ckpt_bench_problems(PLAN, full, {**RUN, "continued": True})
    assert "need about 300.00 MB" in problem


def test_cold_starts_need_neither_a_build_nor_a_store() -> None:
    cold = ckpt_plan(ckpt_lanes(LANES, "cold"), SERVER, "r1", "/store", "/disk", 100 * MIB)
    bare = {**node(store={"exists": False, "mount": None, "free_bytes": None}), "builds": []}
    assert ckpt_bench_problems(cold, bare, RUN) == []
