# SPDX-License-Identifier: GPL-3.0-or-later
"""Workers of vLLM that are seeded anew. A fake stands for vLLM, which does not run without a GPU."""

from __future__ import annotations

import importlib.util
import random
import sys
from types import ModuleType
from typing import Any

import pytest
from project import ROOT

FILE = ROOT / "roles/inference_server/files/vllm_plugin/gpuckpt_vllm/reseed.py"


@pytest.fixture
def worker_class(monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """A class as vLLM makes it of its worker and the extension: the worker first."""
    torch_utils = ModuleType("vllm.utils.torch_utils")
    torch_utils.set_random_seed = random.seed  # type: ignore[attr-defined]
    for name, module in {"vllm": ModuleType("vllm"), "vllm.utils": ModuleType("vllm.utils")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "vllm.utils.torch_utils", torch_utils)
    spec = importlib.util.spec_from_file_location("gpuckpt_vllm_reseed", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class WorkerBase:
        """As vLLM's own worker has one."""

    class Worker(WorkerBase):
        """As that of a GPU."""

    Worker.__bases__ = (*Worker.__bases__, module.Reseed)
    return Worker


def drawn(worker: Any, seed: int | str) -> float:
    worker.gpuckpt_reseed(seed)
    return random.random()


def test_all_workers_draw_the_same_and_another_seed_gives_others(worker_class: type[Any]) -> None:
    first, second = worker_class(), worker_class()
    assert drawn(first, 7) == drawn(second, "7") != drawn(first, 8)


def test_a_number_that_numpy_does_not_take_is_cut(worker_class: type[Any]) -> None:
    assert drawn(worker_class(), 1 << 32) == drawn(worker_class(), 0)
