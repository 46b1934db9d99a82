# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes of one server on several GPUs; the GPUs are told, the process is a real one."""

from __future__ import annotations

import os

import pytest
from ansible.module_utils.ckpt.checkpoints import preflight
from ansible.module_utils.ckpt.cuda import processes as cuda
from ansible.module_utils.ckpt.system import procfs
from ansible.module_utils.ckpt.system.commands import Commands

FIRST, SECOND = "GPU-9d2222a2-148d-e103-899b-a50a0f7fccca", "GPU-00000000-148d-e103-899b-a50a0f7fccca"
# One line of it from an H200, driver 580.159.04; the others are composed in its form.
APPS = [["509", FIRST], ["510", SECOND], ["510", FIRST], ["77", FIRST], ["[N/A]"]]


def test_the_gpus_of_the_servers_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "query", lambda *_: APPS)
    assert cuda.process_gpus(Commands(), [508, 509, 510]) == {509: {FIRST}, 510: {FIRST, SECOND}}
    assert cuda.process_gpus(Commands(), []) == {}


@pytest.mark.parametrize(
    ("device_map", "missing"),
    [
        ("", [FIRST]),
        (f"{FIRST}={SECOND}", []),
        (f"{FIRST.removeprefix('GPU-')}={SECOND.upper()}", []),
        (f"{SECOND}={FIRST}", [FIRST]),
        (f"{FIRST}={FIRST}", [FIRST]),
    ],
)
def test_a_gpu_that_a_checkpoint_needs_is_there_or_another_takes_its_place(device_map: str, missing: list[str]) -> None:
    assert cuda.missing_gpus([FIRST], [SECOND], device_map) == missing
    assert cuda.missing_gpus([FIRST], [FIRST, SECOND], "") == []
    assert cuda.missing_gpus([], [], device_map) == []


@pytest.mark.parametrize(
    ("gpus", "refused"),
    [
        ({}, False),
        ({509: {FIRST}}, False),
        ({509: {FIRST, SECOND}}, False),
        ({509: {FIRST}, 510: {FIRST}}, False),
        ({509: {FIRST}, 510: {SECOND}}, True),
    ],
)
def test_processes_on_several_gpus_are_refused(gpus: dict[int, set[str]], refused: bool) -> None:
    [task] = procfs.tree(os.getpid())[:1]
    findings = preflight.examine([task], preflight.Dump(tcp_established=True, gpus=gpus))
    told = [str(finding) for finding in findings if finding.kind.name == "gpu_peers"]
    assert len(told) == refused
    assert all("2 processes of the server use 2 GPUs" in text and "unshared_by" in text for text in told)
