# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventories that come along would do what their comments say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ckpt_lanes import ckpt_lanes
from project import ROOT


@pytest.fixture(scope="module")
def hosts():
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", "inventories/example", "--list"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["_meta"]["hostvars"]


def test_it_has_nodes_of_both_kinds(hosts):
    assert {host["gpuckpt_server"] for host in hosts.values()} == {"vllm", "reference"}


def test_a_node_with_vllm_is_provisioned_as_one_with_a_gpu(hosts):
    assert [
        name for name, host in hosts.items() if host["gpuckpt_server"] == "vllm" and not host.get("gpuckpt_gpu")
    ] == []


def test_its_lanes_are_accepted_and_have_a_baseline(hosts):
    for host in hosts.values():
        lanes = ckpt_lanes(host["gpuckpt_lanes"])
        assert [lane["name"] for lane in lanes if lane["baseline"]] in (["stock"], ["podman-stock"])


@pytest.fixture
def local_gpu():
    """Returns the variables of inventories/gpu-local as Ansible templates them with these arguments."""

    def variables(names, *arguments):
        command = [str(Path(sys.executable).with_name("ansible")), "-i", "inventories/gpu-local", "gpu-nodes"]
        asked = "{{ dict(names | zip(query('ansible.builtin.vars', *names))) }}"
        command += ["-m", "ansible.builtin.debug", "-a", f"msg={asked}", "-e", json.dumps({"names": names}), *arguments]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        return yaml.safe_load(done.stdout.split("=>", 1)[1])["msg"]

    return variables


@pytest.mark.parametrize(
    ("arguments", "model"), [([], "qwen2-1.5b"), (["-e", "gpuckpt_model=llama-3.1-8b"], "llama-3.1-8b")]
)
def test_one_variable_chooses_the_model(local_gpu, arguments, model):
    defaults = yaml.safe_load((ROOT / "roles/model_cache/defaults/main.yml").read_text(encoding="utf-8"))
    expected = {
        "model_cache_name": model,
        "model_cache_architecture": model,
        "inference_server_vllm_model_path": f"{defaults['model_cache_root']}/{model}",
        "inference_server_vllm_model_name": model,
    }
    assert local_gpu(list(expected), *arguments) == expected


def test_one_variable_chooses_a_server_as_it_comes(local_gpu):
    settings = {"sleep_mode": False, "enforce_eager": False, "prefix_caching": True}
    expected = {f"inference_server_vllm_{name}": value for name, value in settings.items()}
    given = local_gpu(["checkpoint_bench_lanes", *expected], "-e", '{"gpuckpt_as_it_comes": true}')
    lanes = {lane["name"]: lane for lane in ckpt_lanes(given.pop("checkpoint_bench_lanes"))}
    assert given == expected
    assert {lane["slimming"] for lane in lanes.values() if lane["start"] == "restore"} == {"none"}
    loaded = {name for name, lane in lanes.items() if "LD_PRELOAD" in lane["server"].get("env", {})}
    assert loaded == {"library-best", "library-resident"}
    assert [name for name, lane in lanes.items() if lane["baseline"]] == ["driver-stock"]


def test_a_larger_model_needs_more_room_for_a_checkpoint(local_gpu):
    name = "inference_server_vllm_image_mib"
    sizes = [local_gpu([name], "-e", f"gpuckpt_model={model}")[name] for model in ("qwen2-1.5b", "llama-3.1-8b")]
    weights_mib = 8_030_261_248 * 2 >> 20
    assert sizes[0] == 9216
    assert sizes[1] > weights_mib
