# SPDX-License-Identifier: GPL-3.0-or-later
"""What vLLM needs to be told so that a server on several GPUs can be checkpointed, each setting with its reason.

The plugin (roles/inference_server/files/vllm_plugin) lets go of NCCL and of the buffers of vLLM's own all-reduce. What else
shares GPU memory between ranks has to be off, since nothing can let go of it. What the ranks talk over has to be there
after a restore on another node as well.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """An environment variable of the server, its value, and why."""

    name: str
    value: str
    reason: str


ENVIRONMENT = (
    Setting("VLLM_ALLREDUCE_USE_SYMM_MEM", "0", "symmetric memory of PyTorch stays shared between the ranks"),
    Setting("VLLM_ALLREDUCE_USE_FLASHINFER", "0", "FlashInfer's all-reduce keeps memory shared by CUDA IPC"),
    Setting("VLLM_USE_NCCL_SYMM_MEM", "0", "windows of NCCL are shared memory that graphs hold"),
    Setting("NCCL_NVLS_ENABLE", "0", "multicast memory of NVLink hangs the driver's checkpoint"),
    Setting("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1", "multicast memory of NVLink hangs the driver's checkpoint"),
    Setting(
        "NCCL_CUMEM_ENABLE", "1", "memory of the virtual memory interface is given back whole when NCCL is released"
    ),
    Setting("NCCL_CUMEM_HOST_ENABLE", "0", "host memory that ranks share by descriptors cannot be dumped"),
    Setting("NCCL_SOCKET_IFNAME", "lo", "another node has other addresses after a restore there"),
    Setting("GPUCKPT_STAGE_GRAPHS", "1", "buffers of graphs travel with the weights, at the speed of the bus"),
    Setting("GLOO_SOCKET_IFNAME", "lo", "another node has other addresses after a restore there"),
)

# One argument: a switch for it alone is not known to vLLM.
NO_FUSED_ALL_REDUCE = {"pass_config": {"fuse_allreduce_rms": False}}


def environment() -> dict[str, str]:
    """The environment variables by name."""
    return {setting.name: setting.value for setting in ENVIRONMENT}


def arguments(gpus: int) -> list[str]:
    """Arguments of vLLM for `gpus` GPUs with a part of each layer on each (tensor parallel); none for one."""
    if gpus == 1:
        return []
    # The pass that fuses the all-reduce with the norm behind it is FlashInfer's, whose memory is shared by CUDA IPC.
    return [
        f"--tensor-parallel-size={gpus}",
        f"--compilation-config={json.dumps(NO_FUSED_ALL_REDUCE)}",
    ]
