# SPDX-License-Identifier: GPL-3.0-or-later
"""The GPU's part of the doctor, on machines that are not here.

KERNEL_* are the first line of /proc/driver/nvidia/version as users posted it. The proprietary module is in issue 19 of
zzzhouuu/truenas-nvidia-drivers, with the mismatch that nvidia-smi printed there. CSV is composed in the form that
`nvidia-smi --help-query-gpu` documents.
"""

import pytest
from ansible.module_utils.ckpt import doctor
from ansible.module_utils.ckpt.cuda import features as driver_features
from ansible.module_utils.ckpt.doctor import gpu
from ansible.module_utils.ckpt.node import gpu as gpu_inspection

KERNEL_PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.173.02  Tue Jun 23 08:38:17 UTC 2026\n"
    "GCC version:  gcc version 14.2.0 (Ubuntu 14.2.0-4ubuntu2~24.04.1)\n"
)
KERNEL_OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (dvs-builder)\n"
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.178\n"
CSV = (
    "0, GPU-aaaaaaaa-0000-1111-2222-333333333333, NVIDIA H100 80GB HBM3, 00000000:18:00.0, 5, 16, 81559, 4, Enabled, Disabled\n"
    "1, GPU-bbbbbbbb-0000-1111-2222-333333333333, NVIDIA L4, 00000000:3B:00.0, 4, 16, 23034, [N/A], Disabled, [N/A]\n"
)
PCI = {"/sys/bus/pci/devices/0000:18:00.0/vendor": "0x10de\n", "/sys/bus/pci/devices/0000:18:00.0/class": "0x030200\n"}


def judged(node, *groups):
    context = doctor.CheckContext(node)
    return {finding.id: finding for finding in doctor.examine(context, groups or ["gpu"])}


# of a node with two H200, driver 580.159.04
TOPOLOGY = (
    "\t\x1b[4mGPU0\tGPU1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
    "GPU0\t X \tNV18\t0-31\t0\t\tN/A\nGPU1\tNV18\t X \t0-31\t0\t\tN/A\n\nLegend:\n\n  X    = Self\n"
)


def test_links_between_gpus_are_read():
    assert gpu_inspection.parse_links(TOPOLOGY) == {(0, 1): "NV18"}
    composed = "GPU0\t X \tNV4\tSYS\nGPU1\tNV4\t X \tPHB\nGPU2\tSYS\tPHB\t X \n"
    assert gpu_inspection.parse_links(composed) == {(0, 1): "NV4", (0, 2): "SYS", (1, 2): "PHB"}
    assert gpu_inspection.parse_links("command not found") == {}


def test_a_card_is_no_gpu(make_node):
    cards = TOPOLOGY.replace("NV18\t0-31", "NV18\tPIX\t0-31").replace("X \t0-31", "X \tPIX\t0-31")
    node = make_node({}, {"nvidia-smi topo -m": (0, cards)})
    assert gpu_inspection.gpu_links(node, 2) == {(0, 1): "NV18"}


def test_every_pair_of_gpus_has_nvlink_or_is_named():
    assert gpu.judge_links({(0, 1): "NV18"}, 2).state == "ok"
    lacking = gpu.judge_links({(0, 1): "NV18", (0, 2): "SYS", (1, 2): "NV18"}, 3)
    assert lacking.state == "warn"
    assert "no NVLink between GPU 0 and 2 (SYS)" in lacking.detail
    assert gpu.judge_links({}, 2).state == "warn"


def test_kernel_modules():
    assert gpu_inspection.kernel_module(KERNEL_PROPRIETARY) == {"version": "580.173.02", "open": False}
    assert gpu_inspection.kernel_module(KERNEL_OPEN) == {"version": "580.159.04", "open": True}
    assert gpu_inspection.kernel_module("") is None


def test_gpus_are_read_with_units_and_gaps():
    first, second = gpu_inspection.parse_gpus(CSV)
    assert (first.name, first.pcie_generation, first.memory_total_bytes) == (
        "NVIDIA H100 80GB HBM3",
        5,
        81559 * 1024**2,
    )
    assert first.persistence
    assert (second.memory_used_bytes, second.mig, second.persistence) == (None, "[N/A]", False)
    assert gpu_inspection.parse_gpus("No devices were found\n") == []


@pytest.mark.parametrize(
    ("version", "state", "lacking"),
    [
        ("550.54.15", "fail", ["actions", "driver-api", "migration", "ipc"]),
        ("555.42.02", "warn", ["driver-api", "migration", "ipc"]),
        ("570.86.15", "warn", ["migration", "ipc"]),
        ("580.159.04", "ok", ["ipc"]),
        ("610.10", "ok", []),
    ],
)
def test_each_feature_has_its_lowest_driver(version, state, lacking):
    verdict = gpu.judge_driver(version, True)
    assert verdict.state == state
    assert [
        name for name, have in driver_features.supported(version).items() if not have and name != "toggle"
    ] == lacking
    assert all(name in verdict.detail for name in lacking)


def test_a_library_of_another_version_than_the_kernel_module_fails():
    verdict = gpu.judge_libraries("580.173.02", {"/usr/lib/libcuda.so.580.178": "580.178"}, MISMATCH)
    assert verdict.state == "fail"
    assert "580.173.02" in verdict.detail
    assert "580.178" in verdict.detail
    assert "Reboot" in verdict.fix


def test_the_linkers_folders_are_searched_too(make_node):
    # a line of `ldconfig -p` on Ubuntu 24.04
    listed = (
        "1412 libs found in cache `/etc/ld.so.cache'\n\tlibcuda.so.1 (libc6,x86-64) => /mnt/driver/lib/libcuda.so.1\n"
    )
    node = make_node({"/mnt/driver/lib/libcuda.so.580.159.04": ""}, {"ldconfig -p": (0, listed)})
    assert list(gpu_inspection.installed_libraries(node).values()) == ["580.159.04"]


def test_nvidia_smi_failing_fails_even_where_the_files_agree():
    assert gpu.judge_libraries("1.2", {"/a": "1.2"}, "Unable to determine the device handle").state == "fail"


def test_a_leftover_library_is_a_warning_and_agreement_is_ok():
    assert gpu.judge_libraries("1.2", {"/a": "1.2", "/b": "1.1"}, "").state == "warn"
    assert gpu.judge_libraries("1.2", {"/a": "1.2"}, "").state == "ok"


def test_cdi_of_another_driver_is_drift():
    text = "devices:\n- containerEdits: {}\nkind: nvidia.com/gpu\n  hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.570.86.15\n"
    found = {"/etc/cdi/nvidia.yaml": gpu_inspection.cdi_library_versions(text)}
    assert found == {"/etc/cdi/nvidia.yaml": {"570.86.15"}}
    assert gpu.judge_cdi("580.159.04", found, True).state == "fail"
    assert gpu.judge_cdi("570.86.15", found, True).state == "ok"
    assert gpu.judge_cdi("570.86.15", {}, True).state == "warn"
    assert gpu.judge_cdi("570.86.15", {}, False).state == "skip"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"#!/bin/sh\nexit 0\n", "script"),
        (b"\x7fELF\0\0gpuckpt: usage\0", "ours, driver API"),
        (b"\x7fELF\0\0", "NVIDIA's or another program"),
    ],
)
def test_what_a_cuda_checkpoint_is(content, kind):
    assert gpu.command_kind(content) == kind


def test_without_a_gpu_every_check_is_skipped(make_node):
    assert {finding.state for finding in judged(make_node()).values()} == {"skip"}


def test_a_gpu_without_driver_fails_at_the_driver(make_node):
    found = judged(make_node(PCI))
    assert found["driver"].state == "fail"
    assert found["driver-libraries"].state == "skip"


def test_a_whole_node(make_node):
    hook = '{"hook": {"path": "/usr/bin/nvidia-container-runtime-hook"}}'
    node = make_node(
        PCI
        | {
            "/proc/driver/nvidia/version": KERNEL_OPEN,
            "/usr/lib/x86_64-linux-gnu/libcuda.so.580.159.04": "",
            "/usr/share/containers/oci/hooks.d/oci-nvidia-hook.json": hook,
            "/opt/nvidia-libs/libcuda.so.570.1": "",
            "/proc/77/comm": "nvidia-cuda-mps\n",
        },
        {"nvidia-smi --query-gpu": (0, CSV)},
    )
    found = judged(node)
    assert {name: finding.state for name, finding in found.items() if name not in ("plugin", "cuda-checkpoint")} == {
        "driver": "ok",
        "driver-libraries": "ok",
        "gpus": "ok",
        "gpu-links": "warn",
        "persistence": "warn",
        "gpu-thp": "warn",
        "cdi": "skip",
        "nvidia-libs": "fail",
        "mig": "ok",
        "mps": "fail",
        "uvm-users": "ok",
        "gpu-hooks": "fail",
    }
    assert "GPU 1" in found["persistence"].detail
    assert "pid 77" in found["mps"].detail
    assert all(finding.fix for finding in found.values() if finding.state in ("warn", "fail"))
