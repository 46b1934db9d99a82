# SPDX-License-Identifier: GPL-3.0-or-later
"""Which settings role inference_server refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from ansible.module_utils.ckpt.server import parallel
from ansible.module_utils.ckpt.vocabulary import RUNTIME_TRAITS, RUNTIMES
from project import ROOT, filters_of

ROLE = filters_of("inference_server")
ASKED: dict[str, Any] = {
    "kind": "reference",
    "kinds": ["command", "reference", "vllm"],
    "port": 18080,
    "weights_mib": 64,
    "runtime": "podman",
    "gpus": 1,
    "name": "gpuckpt-server",
    "phases": ["validate", "install"],
    "canary": {},
}


@pytest.mark.parametrize(
    "change", [{}, {"port": 1}, {"port": 65535}, {"weights_mib": 1}, {"name": "a"}, {"canary": {"temperature": 0.0}}]
)
def test_settings_that_can_work_are_taken(change: dict[str, Any]) -> None:
    assert ROLE.inference_server_problems({**ASKED, **change}) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "sglang"}, "inference_server_kind is sglang: choose one of command, reference, vllm"),
        ({"port": 0}, "inference_server_port is 0: choose a TCP port from 1 to 65535"),
        ({"port": 65536}, "inference_server_port is 65536: choose a TCP port from 1 to 65535"),
        ({"weights_mib": 0}, "inference_server_weights_mib is 0: give the size of the weights in MiB, at least 1"),
        ({"gpus": 0}, "inference_server_vllm_gpus is 0: give the number of GPUs of one server, at least 1"),
        ({"runtime": "docker"}, "inference_server_runtime is docker: choose podman or process"),
        ({"name": "No Such Name"}, "inference_server_name is No Such Name: use lower-case words joined by -"),
        ({"name": "a--b"}, "inference_server_name is a--b: use lower-case words joined by -"),
        ({"name": "a\n"}, "inference_server_name is a\n: use lower-case words joined by -"),
        ({"phases": ["install", "brew"]}, "inference_server_phases has unknown phases: brew"),
        (
            {"canary": {"temperature": 0.7}},
            "inference_server_canary.temperature must be 0: only greedy tokens can be compared before and after a restore",
        ),
    ],
)
def test_each_mistake_is_named(change: dict[str, Any], said: str) -> None:
    assert ROLE.inference_server_problems({**ASKED, **change}) == [said]


def test_all_mistakes_are_named_at_once() -> None:
    wrong = {**ASKED, "port": 99999, "weights_mib": 0, "name": "No Such Name"}
    assert len(ROLE.inference_server_problems(wrong)) == 3


def test_a_server_on_one_gpu_is_told_nothing_about_several() -> None:
    assert ROLE.inference_server_parallel(1) == {"args": [], "env": {}}


def test_a_server_on_several_gpus_is_told_what_cannot_be_let_go_of() -> None:
    told = ROLE.inference_server_parallel(4)
    assert "--tensor-parallel-size=4" in told["args"]
    [compiled] = [argument for argument in told["args"] if argument.startswith("--compilation-config=")]
    assert json.loads(compiled.partition("=")[2])["pass_config"] == {"fuse_allreduce_rms": False}
    assert (told["env"]["NCCL_NVLS_ENABLE"], told["env"]["VLLM_ALLREDUCE_USE_SYMM_MEM"]) == ("0", "0")
    assert all(setting.reason for setting in parallel.ENVIRONMENT)


def test_phases_and_runtimes_are_those_that_the_role_documents() -> None:
    specs = yaml.safe_load((ROOT / "roles/inference_server/meta/argument_specs.yml").read_text(encoding="utf-8"))
    phases = specs["argument_specs"]["main"]["options"]["inference_server_phases"]["choices"]
    for runtime in RUNTIMES:
        assert ROLE.inference_server_problems({**ASKED, "phases": phases, "runtime": runtime}) == []


def test_what_is_in_a_container_is_said_by_the_runtimes_traits() -> None:
    told = {name: ROLE.inference_server_in_container(name) for name in RUNTIMES}
    assert told == {name: RUNTIME_TRAITS[name].in_container for name in RUNTIMES}
    assert (told["podman"], told["process"]) == (True, False)
    assert ROLE.inference_server_in_container("docker") is False
