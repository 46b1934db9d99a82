# Copyright: gpuckpt contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which checkpoints a benchmark needs, and which lane restores which; see ckpt_plan.yml."""

from __future__ import annotations

import hashlib
import json
import posixpath
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleFilterError

# Ansible finds our module_utils for modules only.
OURS = str(Path(__file__).resolve().parent.parent / "module_utils")
if OURS not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(OURS)

from ansible.module_utils.ckpt.server.spec import KNOWN
from ansible.module_utils.ckpt.vocabulary import ARCHIVES, RUNTIME_TRAITS

Spec = dict[str, Any]

# What a lane may override of the server. ``extra_args`` are appended to its command.
SERVER_KEYS = (*sorted(KNOWN), "extra_args")
# What tells one checkpoint from another, in addition to the server and the run
TAKEN_WITH = ("runtime", "slimming", "source", "checkpoint")


def ckpt_plan(
    lanes: list[Spec], server: Spec, run_id: str, store_path: str, disk_path: str, image_bytes: int = 0
) -> Spec:
    """Returns ``{"lanes": {name: …}, "instances": [...], "store_bytes": n, "disk_bytes": n}``.

    Restore lanes that agree in server, runtime, slimming, source and checkpoint share one golden checkpoint. Its
    identifier carries a digest of all that and of the run: a checkpoint found under that name is the right one.

    :param lanes: lanes as returned by ``ckpt_lanes``
    :param server: specification of the server under test, as built by the role inference_server
    :param run_id: run for which the checkpoints are taken
    :param store_path: folder of the tmpfs store, for every source but ``disk``
    :param disk_path: folder on a disk, for the source ``disk``
    :param image_bytes: expected size of one checkpoint
    :raises AnsibleFilterError: naming every key of a lane's ``server`` that no specification has
    """
    unknown = [
        f"lane {lane['name']!r}: server.{key}" for lane in lanes for key in lane["server"] if key not in SERVER_KEYS
    ]
    if unknown:
        raise AnsibleFilterError(
            f"ckpt_plan: not known: {', '.join(unknown)}; a lane can override {', '.join(sorted(SERVER_KEYS))}"
        )
    checkpoints: dict[str, Spec] = {}
    placed: dict[str, Spec] = {}
    for lane in lanes:
        spec = _lane_server(server, lane["server"])
        if lane["start"] == "cold":
            placed[lane["name"]] = {**lane, "server": _named(spec, lane["name"]), "checkpoint_id": None}
            continue
        wanted = {"run_id": run_id, "server": spec, **{key: lane[key] for key in TAKEN_WITH}}
        identifier = f"{_readable_name(lane)}-{_digest(wanted)}"
        folder = posixpath.join(disk_path if lane["source"] == "disk" else store_path, identifier)
        instance = _instance_name(lane, wanted, identifier)
        named = _named(spec, instance)
        checkpoint: Spec = {"id": identifier, "dir": folder, "instance": instance, "server": named, "lanes": []}
        checkpoint |= {"number": len(checkpoints), "bytes": _copies(lane) * int(image_bytes)}
        checkpoint |= {key: lane[key] for key in TAKEN_WITH}
        checkpoints.setdefault(identifier, checkpoint)["lanes"].append(lane["name"])
        placed[lane["name"]] = {**lane, "server": named, "checkpoint_id": identifier, "checkpoint_dir": folder}
    return {
        "lanes": placed,
        "instances": _instances(list(checkpoints.values())),
        "store_bytes": sum(one["bytes"] for one in checkpoints.values() if one["source"] != "disk"),
        "disk_bytes": sum(one["bytes"] for one in checkpoints.values() if one["source"] == "disk"),
    }


def _copies(lane: Spec) -> int:
    """How often the images are in a checkpoint's folder: an archive that the runtime does not read is unpacked there."""
    unpacked = lane["source"] in ARCHIVES and not RUNTIME_TRAITS[lane["runtime"]].reads_archives
    return 2 if unpacked else 1


def _instance_name(lane: Spec, wanted: Spec, identifier: str) -> str:
    """Which server a checkpoint is taken of.

    Images in place belong to their container, which is then used up. Archives carry their container along, and a bare
    process needs none. One server serves for all of these checkpoints, since a start costs more than a dump.
    """
    own = {"source", "checkpoint"}
    if not RUNTIME_TRAITS[lane["runtime"]].uses_up_server:
        # it is whole again after each checkpoint, so how small it was made for one of them does not matter
        own.add("slimming")
    elif lane["source"] not in ARCHIVES:
        return identifier
    shared = {key: value for key, value in wanted.items() if key not in own}
    return f"{lane['runtime']}-shared-{_digest(shared)}"


def _instances(checkpoints: list[Spec]) -> list[Spec]:
    """Servers to start, each with the checkpoints that are taken of it, one after another."""
    instances: dict[str, Spec] = {}
    for checkpoint in checkpoints:
        shared = {key: checkpoint[key] for key in ("server", "runtime")}
        instance = instances.setdefault(
            checkpoint["instance"], {"id": checkpoint["instance"], **shared, "checkpoints": []}
        )
        instance["checkpoints"].append(checkpoint)
    return list(instances.values())


def _named(server: Spec, suffix: str) -> Spec:
    return {**server, "name": f"{server['name']}-{suffix}"}


def _lane_server(server: Spec, overrides: Spec) -> Spec:
    """Applies a lane's overrides: dictionaries merge, ``extra_args`` are appended to the command, the rest replaces."""
    merged = _merge(server, {key: value for key, value in overrides.items() if key != "extra_args"})
    if overrides.get("extra_args"):
        merged["command"] = [*merged["command"], *overrides["extra_args"]]
    return merged


def _merge(base: Spec, overrides: Spec) -> Spec:
    merged = dict(base)
    for key, value in overrides.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _readable_name(lane: Spec) -> str:
    parts = [lane["runtime"], lane["source"].replace(".", "-")]
    parts += [lane["slimming"]] if lane["slimming"] != "none" else []
    parts += [lane["checkpoint"]["build"]] if lane["checkpoint"]["build"] != "stock" else []
    return "-".join(parts)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


class FilterModule:
    """Register the filter with Ansible."""

    def filters(self) -> dict[str, Any]:
        """Returns the filters by name."""
        return {"ckpt_plan": ckpt_plan}
