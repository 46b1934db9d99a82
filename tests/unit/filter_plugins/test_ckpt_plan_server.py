# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lane overrides of the server is known before anything starts."""

from __future__ import annotations

import ckpt_plan
import pytest
from ansible.errors import AnsibleFilterError
from ckpt_lanes import ckpt_lanes

SERVER = {"name": "gpuckpt-reference", "command": ["serve"], "env": {"A": "1"}, "port": 18080}


def test_every_unknown_key_is_named_with_its_lane() -> None:
    lanes = [
        {"name": "a", "start": "cold", "runtime": "podman", "server": {"prot": 1, "env": {}}},
        {"name": "b", "start": "restore", "runtime": "process", "server": {"extra_arg": ["-v"]}},
    ]
    with pytest.raises(AnsibleFilterError) as refused:
        ckpt_plan.ckpt_plan(ckpt_lanes(lanes), SERVER, "r1", "/store", "/disk")
    assert "lane 'a': server.prot" in str(refused.value)
    assert "lane 'b': server.extra_arg;" in str(refused.value)
    assert "server.env" not in str(refused.value)
