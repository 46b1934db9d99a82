# SPDX-License-Identifier: GPL-3.0-or-later
"""What a role documents and what it does by default are the same."""

import pytest
import yaml
from project import ROOT

ROLES = sorted(path.parents[1] for path in ROOT.glob("roles/*/tasks/main.yml"))
CHANGING_PHASES = {"install", "configure"}
# It writes a folder on the controller and touches no node: there is nothing to take back.
ON_THE_CONTROLLER = {"bundle"}


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def specs(role):
    return load(role / "meta" / "argument_specs.yml")["argument_specs"]


@pytest.fixture(params=ROLES, ids=lambda role: role.name)
def role(request):
    return request.param


def test_there_are_roles():
    assert ROLES


def test_defaults_are_those_of_the_specification(role):
    documented = {
        name: option["default"]
        for name, option in specs(role)["main"].get("options", {}).items()
        if "default" in option
    }
    assert load(role / "defaults" / "main.yml") == documented


def test_every_option_is_described_and_named_after_the_role(role):
    for entry, spec in specs(role).items():
        for name, option in spec.get("options", {}).items():
            assert option.get("description"), f"{entry}: {name} has no description"
            assert name.startswith((f"{role.name}_", "gpuckpt_")), f"{entry}: {name} lacks the role's prefix"


def test_every_entry_point_is_specified(role):
    points = {path.stem for path in (role / "tasks").glob("*.yml")}
    assert set(specs(role)) <= points
    assert "main" in specs(role)


def test_phases_exist(role):
    options = specs(role)["main"].get("options", {})
    phases = options.get(f"{role.name}_phases", {}).get("choices", [])
    missing = [phase for phase in phases if not (role / "tasks" / f"{phase}.yml").is_file()]
    assert not missing, f"{role.name}_phases allows {missing}, which have no tasks file"


def test_a_role_that_changes_a_node_can_take_it_back(role):
    phases = specs(role)["main"].get("options", {}).get(f"{role.name}_phases", {}).get("choices", [])
    if role.name not in ON_THE_CONTROLLER and CHANGING_PHASES & set(phases):
        assert {"verify", "rollback"} <= set(phases)
