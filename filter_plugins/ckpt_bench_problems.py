# Copyright: gpuckpt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a benchmark cannot end well on a node; see ckpt_bench_problems.yml."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from ansible.module_utils.common.text.formatters import bytes_to_human

Data = dict[str, Any]


def ckpt_bench_problems(plan: Data, node: Data, run: Data, made: Collection[str] = ()) -> list[str]:
    """Returns everything that stands against measuring the plan on the node, each with what to do about it.

    :param plan: checkpoints and lanes, as returned by ``ckpt_plan``
    :param node: what the node has, as returned by ``ckpt_node_info`` for the run's model and store
    :param run: ``id``, ``host``, ``folder`` (on the node), ``continued``, ``model`` and ``store`` (paths)
    :param made: folders of the checkpoints that the run has already
    """
    problems = [_model_problems, _build_problems, _record_problems, _store_problems]
    needed = _needed_bytes(plan, made)
    return [text for find in problems for text in find(plan, node, {**run, "needed_bytes": needed})]


def _model_problems(plan: Data, node: Data, run: Data) -> Iterator[str]:
    if not node["paths"][run["model"]]["exists"]:
        yield f"there is nothing at {run['model']}: run provision.yml with the same settings first"


def _build_problems(plan: Data, node: Data, run: Data) -> Iterator[str]:
    # a cold start uses none
    restores = [lane for lane in plan["lanes"].values() if lane["start"] == "restore"]
    asked = dict.fromkeys([*(lane["build"] for lane in restores), *(lane["checkpoint"]["build"] for lane in restores)])
    missing = [build for build in asked if build not in node["builds"]]
    if missing:
        yield (
            f"lanes name builds of CRIU that {run['host']} lacks ({', '.join(missing)}): run provision.yml with "
            "criu_variants and criu_distro so that it has them, or correct build and checkpoint.build of the lanes"
        )


def _record_problems(plan: Data, node: Data, run: Data) -> Iterator[str]:
    if node["records"] and not run["continued"]:
        yield (
            f"{node['records']} records of an earlier run {run['id']} lie in {run['folder']} on {run['host']}: choose "
            "another gpuckpt_run_id, or continue that run (gpuckpt_continue=true, with the gpuckpt_results_dir that has "
            "its manifest), or remove the folder"
        )


def _store_problems(plan: Data, node: Data, run: Data) -> Iterator[str]:
    store, path = node["paths"][run["store"]], run["store"]
    if store["mount"] != path:
        if plan["store_bytes"] > 0:
            yield f"the checkpoint store {path} is not mounted: run provision.yml first"
    elif run["needed_bytes"] > store["free_bytes"]:
        yield (
            f"the checkpoints of these lanes need about {bytes_to_human(run['needed_bytes'])}, and {path} has "
            f"{bytes_to_human(store['free_bytes'])} free: make it larger (checkpoint_store_size_mib), run fewer lanes "
            "(gpuckpt_lane_filter) or smaller weights (gpuckpt_weights_mib)"
        )


def _needed_bytes(plan: Data, made: Collection[str]) -> int:
    """Room in the store for the checkpoints that are still to be taken."""
    checkpoints = [checkpoint for instance in plan["instances"] for checkpoint in instance["checkpoints"]]
    return sum(one["bytes"] for one in checkpoints if one["source"] != "disk" and one["dir"] not in made)


class FilterModule:
    """Register the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filters by name."""
        return {"ckpt_bench_problems": ckpt_bench_problems}
