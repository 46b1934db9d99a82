# SPDX-License-Identifier: GPL-3.0-or-later
"""What provisioning sets is a lane, and what is published of that lane is therefore what users get."""

import yaml
from project import ROOT

ELSEWHERE = {"CRIU_FREEZE_POLL_MS": 1}  # set for every lane of the inventory


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_the_lane_has_the_switches_of_the_role():
    lanes = read("inventories/gpu-local/group_vars/all/lanes.yml")
    best = lanes["gpuckpt_switches_best"]
    lane = next(lane for lane in lanes["gpuckpt_lanes"] if lane["name"] == "staged-provisioned")
    assert lane["switches"] == "{{ gpuckpt_switches_provisioned }}"
    assert (
        "combine({'CRIU_MAPPED_SCOPE': 'driver', 'CRIU_CUDA_BACKEND': 'auto'})" in lanes["gpuckpt_switches_provisioned"]
    )
    assert read("inventories/gpu-local/group_vars/all/settings.yml")["criu_env"] == ELSEWHERE
    # auto is what the plugin takes without that switch
    provisioned = {**best, "CRIU_MAPPED_SCOPE": "driver", **ELSEWHERE}
    del provisioned["CRIU_CUDA_BACKEND"]
    assert read("roles/criu/defaults/main.yml")["criu_env"] == provisioned
