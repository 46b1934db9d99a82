# SPDX-License-Identifier: GPL-3.0-or-later
"""What a failed restore says of GPUs that the node does not have; the GPUs are told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.ckpt.cuda import processes as cuda
from ansible.module_utils.ckpt.measure import restore
from ansible.module_utils.ckpt.system.commands import Commands

OLD, NEW = "GPU-9d2222a2-148d-e103-899b-a50a0f7fccca", "GPU-00000000-148d-e103-899b-a50a0f7fccca"


def operation(switches: dict[str, str]) -> Any:
    return SimpleNamespace(commands=Commands(), criu=SimpleNamespace(effective_switches=lambda: switches))


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "query", lambda *_: [[NEW]])


def test_a_failed_restore_names_the_gpu_that_is_not_there() -> None:
    said = restore._missing_gpus(operation({}), SimpleNamespace(gpus=[OLD]))  # type: ignore[arg-type]
    assert f"is of the GPU {OLD}, which this node lacks; it has {NEW}" in said
    assert "CRIU_CUDA_DEVICE_MAP: OLD=NEW" in said


@pytest.mark.parametrize(
    ("gpus", "switches"), [([], {}), ([NEW], {}), ([OLD], {"CRIU_CUDA_DEVICE_MAP": f"{OLD}={NEW}"})]
)
def test_where_no_gpu_is_missing_nothing_is_said(gpus: list[str], switches: dict[str, str]) -> None:
    assert restore._missing_gpus(operation(switches), SimpleNamespace(gpus=gpus)) == ""  # type: ignore[arg-type]
