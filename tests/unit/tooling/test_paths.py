# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things lie on a node is the same for roles, their documentation and modules."""

import pytest
import yaml
from ansible.module_utils.ckpt import paths
from ansible.module_utils.ckpt.criu import folder
from project import ROOT

# end of a variable's name → where that lies
HOMES = {
    "_criu_home": folder.HOME,
    "_originals_folder": paths.ORIGINALS,
    "store_path": paths.STORE,
    "doctor_seccomp_path": paths.SECCOMP_PROFILE,
    "doctor_gpu_libraries": paths.GPU_LIBRARIES,
}


@pytest.mark.parametrize(("ending", "home"), HOMES.items())
def test_the_defaults_of_roles_are_those_of_modules(ending, home):
    found = {}
    for file in ROOT.glob("roles/*/defaults/main.yml"):
        defaults = yaml.safe_load(file.read_text(encoding="utf-8"))
        found |= {name: str(value) for name, value in defaults.items() if name.endswith(ending)}
    assert found
    assert {name: value for name, value in found.items() if home not in value} == {}
