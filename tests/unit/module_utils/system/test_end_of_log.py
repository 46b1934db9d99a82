# SPDX-License-Identifier: GPL-3.0-or-later
"""What is shown of the log of a server that has ended."""

from __future__ import annotations

from ansible.module_utils.ckpt.system.commands import end_of_log

# vLLM's log of a server on two GPUs, shortened: the cause stands far above the end
WORKER = "(Worker pid=3145) ERROR [multiproc_executor.py:898]"
CAUSE = f"{WORKER} ctypes.ArgumentError: argument 3: TypeError: Don't know how to convert parameter 3"
LAST = "(APIServer pid=2774) RuntimeError: Engine core initialization failed. See root cause above."


def test_the_first_error_is_shown_before_the_last_lines() -> None:
    frames = [f'{WORKER}   File "/site/vllm/v1/worker.py", line {number}' for number in range(40)]
    trace = [f'(APIServer pid=2774)   File "/site/vllm/engine.py", line {number}' for number in range(30)]
    shown = end_of_log("\n".join([*frames, CAUSE, "", *trace, LAST]), lines=12)
    assert shown == [CAUSE, *trace[-11:], LAST]


def test_a_log_without_errors_is_its_last_lines() -> None:
    assert end_of_log("a\nb\n\nc\n", lines=2) == ["b", "c"]
    assert end_of_log("") == []


def test_an_error_among_the_last_lines_is_shown_once() -> None:
    assert end_of_log(f"start\n{CAUSE}\n", lines=12) == ["start", CAUSE]


def test_many_errors_are_the_first_ones() -> None:
    errors = [f"ValueError: {number}" for number in range(9)]
    assert end_of_log("\n".join([*errors, "x", "y"]), lines=2) == [*errors[:3], "x", "y"]
