# SPDX-License-Identifier: GPL-3.0-or-later
"""A fix that a message or a page gives names a variable that there is; tasks name filters of their role, too."""

import re

import pytest
import yaml
from project import ROOT, filters_of

# Those whose prefix begins nothing else, as `criu_` and `doctor_` do.
ROLES = (
    "checkpoint_bench",
    "checkpoint_store",
    "container_runtime",
    "inference_server",
    "model_cache",
    "nvidia_driver",
    "seccomp_profile",
)
NAME = re.compile(rf"(?<![\w/])(?:{'|'.join(ROLES)})_[a-z0-9_]+")
FACT = re.compile(r"^\s+((?!__)\w+):", re.MULTILINE)
PLACES = (
    "README.md",
    "docs/*.md",
    "inventories/**/*.yml",
    "module_utils/ckpt/**/*.py",
    "library/*.py",
    "playbooks/*.yml",
    "roles/*/tasks/*.yml",
)
PAGES = sorted(path for place in PLACES for path in ROOT.glob(place))


@pytest.fixture(scope="module")
def variables():
    names = set()
    for role in ROLES:
        specs = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
        names |= {name for spec in specs["argument_specs"].values() for name in spec.get("options", {})}
        for tasks in (ROOT / "roles" / role / "tasks").glob("*.yml"):
            names |= set(FACT.findall(tasks.read_text(encoding="utf-8")))
        names |= set(vars(filters_of(role)))
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_variables_of_roles_that_are_named_exist(page, variables):
    assert sorted(set(NAME.findall(page.read_text(encoding="utf-8"))) - variables) == []
