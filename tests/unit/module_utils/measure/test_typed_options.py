# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that a module accepts are those that its flow sees."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import pytest
from ansible.module_utils.ckpt.checkpoints.manifest import Layout
from ansible.module_utils.ckpt.measure import options
from ansible.module_utils.ckpt.measure.options import Bill, CheckpointOptions, ProbeOptions, RestoreOptions, Untaken
from project import ROOT

LIBRARY = ROOT / "library"
KINDS = {
    "start": options.StartOptions,
    "checkpoint": CheckpointOptions,
    "restore": RestoreOptions,
    "probe": ProbeOptions,
    "floor": options.FloorOptions,
}
# what an option of several parts becomes
PARTS = {("checkpoint", "checkpoint"): {"layout", "name"}, ("restore", "checkpoint"): {"layout", "untaken"}}


def accepted(name: str) -> dict[str, Any]:
    """The argument specification of a module, without what all modules share."""
    specification = importlib.util.spec_from_file_location(f"ckpt_{name}", LIBRARY / f"ckpt_{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    found: dict[str, Any] = module.OPTIONS
    return found


def defaults(specification: dict[str, Any]) -> dict[str, Any]:
    """The params that Ansible makes of an argument specification where nothing is given, `/x` and 1 for what is required."""
    samples = {"path": "/x", "str": "x", "int": 1, "float": 1.0}
    params = {}
    for name, option in specification.items():
        if option.get("required"):
            params[name] = defaults(option["options"]) if option["type"] == "dict" else samples[option["type"]]
        else:
            params[name] = option.get("default")
    return params


@pytest.mark.parametrize("name", list(KINDS))
def test_every_option_of_a_module_is_one_of_its_flow_and_no_other(name: str) -> None:
    expected = set().union(*(PARTS.get((name, option), {option}) for option in accepted(name)))
    assert {field.name for field in dataclasses.fields(KINDS[name])} == expected


@pytest.mark.parametrize("name", list(KINDS))
def test_the_defaults_of_a_module_make_options(name: str) -> None:
    made = KINDS[name].from_params(defaults(accepted(name)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(made)[0].name, None)


def test_parts_of_options_have_names() -> None:
    params = defaults(accepted("restore"))
    params["checkpoint"] |= {"source": "tar", "untaken": {"reason": "store_full", "cause": "no room"}}
    made = RestoreOptions.from_params(params | {"flags": ["--keep"]})
    assert (made.layout, made.untaken) == (Layout("/x", "tar"), Untaken("store_full", "no room"))
    assert made.flags == ("--keep",)
    probe = defaults(accepted("probe")) | {"bill": {"started": "cold", "up_at_s": 3.0, "at_s": 60.0}}
    assert ProbeOptions.from_params(probe).bill == Bill("cold", 3.0, 60.0)


@pytest.mark.parametrize(("given", "name"), [(None, "golden"), ("mine", "mine")])
def test_a_checkpoint_without_a_name_has_that_of_its_folder(given: str | None, name: str) -> None:
    params = defaults(accepted("checkpoint"))
    params["checkpoint"] |= {"dir": "/store/golden/", "name": given}
    assert CheckpointOptions.from_params(params).name == name


@pytest.mark.parametrize(
    ("change", "is_load"),
    [({}, False), ({"requests": 9}, False), ({"concurrency": 2}, True), ({"max_tokens": 8}, True)],
)
def test_a_load_is_more_than_canaries_in_turn(change: dict[str, int], is_load: bool) -> None:
    assert ProbeOptions.from_params(defaults(accepted("probe")) | change).is_load is is_load
