# SPDX-License-Identifier: GPL-3.0-or-later
"""Phases and causes out of recorded logs."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.criu import log as criu_log
from ansible.module_utils.ckpt.measure import flows
from ansible.module_utils.ckpt.runtimes import base
from ansible.module_utils.ckpt.runtimes.base import Evidence
from ansible.module_utils.ckpt.vocabulary import REASONS


@pytest.mark.parametrize(
    ("log", "plan"), [("dump-process.log", criu_log.DUMP_PHASES), ("restore-process.log", criu_log.RESTORE_PHASES)]
)
def test_phases_follow_one_another_and_cover_the_log(criu: Path, log: str, plan: tuple[criu_log.Phase, ...]) -> None:
    lines = criu_log.parse((criu / log).read_text())
    found = criu_log.phases(lines, plan)
    assert list(found) == [phase.name for phase in plan]
    for (_, end), (start, _) in itertools.pairwise(found.values()):
        assert start == end
    covered = sum(end - start for start, end in found.values())
    assert covered == pytest.approx(lines[-1].seconds, abs=0.002)


def test_dump_spends_its_time_on_memory(criu: Path) -> None:
    found = criu_log.phases(criu_log.parse((criu / "dump-process.log").read_text()), criu_log.DUMP_PHASES)
    assert found["memory"] == (0.041669, 0.588176)


def test_spans_of_vllm_on_a_gpu(criu: Path) -> None:
    text = (criu / "dump-vllm-h100.log").read_text()
    found = criu_log.spans(text)
    assert {"driver-open", "cuda-lock", "cuda-checkpoint"} <= found.keys()
    start, end, parked = found["cuda-checkpoint"]
    # two processes, handled at the same time: from the first start to the last end
    assert (start, end) == (298.494960, 299.091747)
    assert parked == 945967104
    assert criu_log.silent_failures(text) == []


def test_a_failed_log_has_no_phase_it_did_not_finish(criu: Path) -> None:
    found = criu_log.phases(criu_log.parse((criu / "failed-tcp.log").read_text()), criu_log.DUMP_PHASES)
    assert "finish" not in found


@pytest.mark.parametrize(
    ("log", "reason", "word"),
    [
        ("failed-tcp.log", "tcp_connection", "tcp_established"),
        ("failed-full.log", "store_full", "checkpoint_store_size_mib"),
        ("failed-truncated-core.log", "images_truncated", "again"),
        ("failed-pid-taken.log", "pid_taken", "process number"),
        ("failed-thread-taken.log", "pid_taken", "number of a thread"),
        ("failed-image-folder.log", "file_unusable", "rights"),
        ("failed-tracer.log", "criu_failed", "TracerPid"),
    ],
)
def test_recorded_failures_are_named(criu: Path, log: str, reason: str, word: str) -> None:
    signature = criu_log.classify((criu / log).read_text())
    assert signature is not None
    assert signature.reason == reason
    assert word in signature.message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("(00.1) Error (criu/sk-inet.c:100): Can't get 1:16 opt: Protocol not available", "criu_too_old"),
        ("(00.1) Error (criu/files-ext.c:94): Can't dump file 7 of that type [0] (anon_inode [io_uring])", "io_uring"),
        ("(00.1) Error (criu/cr-dump.c:1): Can't get rlimit 0: Operation not permitted", "criu_failed"),
        ("Error: write /store/checkpoint.tar: no space left on device", "store_full"),
        ("tar: /store/checkpoint.tar: Wrote only 4096 of 10240 bytes", "store_full"),
        ("(00.2) pie: 6: Error (criu/pie/restorer.c:196): can't write lsm profile -2", "criu_failed"),
        ("(14.1) 47748: Error (criu/lsm.c:360): mismatched lsm types and lsm profile specified", "criu_failed"),
    ],
)
def test_causes_seen_elsewhere_are_named(line: str, reason: str) -> None:
    signature = criu_log.classify(line)
    assert signature is not None
    assert signature.reason == reason


def test_a_cause_that_criu_words_as_a_warning_stands_before_the_errors(criu: Path) -> None:
    lines = criu_log.cause_lines((criu / "failed-tracer.log").read_text())
    assert "Warn  (compel/src/lib/infect.c:132): Unable to interrupt task" in lines[0]
    assert "Dumping FAILED" in lines[-1]
    # the warnings of a healthy beginning are not among them
    assert all("Error (" in line for line in criu_log.cause_lines((criu / "failed-pid-taken.log").read_text()))


def test_an_unknown_cause_is_told_with_its_warning_and_without_a_promise() -> None:
    log = "(00.1) Warn  (criu/x.c:1): the cause\n(00.2) Error (criu/y.c:2): what follows\n"
    error = flows.explain(Evidence(log), "", "criu_failed", "it failed")
    assert error.log_lines == log.splitlines()
    assert "the cause" in error.message
    assert "doctor" not in error.message


@pytest.mark.parametrize("fields", ["start=nan end=1", "start=1 end=inf", "start=2 end=1", "start=1 end=2 bytes=-1"])
def test_spans_that_are_none(fields: str) -> None:
    assert criu_log.spans(f"gpuckpt: span name=a pid=1 {fields}\n") == {}


def test_of_a_log_that_is_too_long_the_beginning_and_the_end_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "LOG_BYTES", 8)
    (tmp_path / "log").write_bytes(b"abcdefghijklmnop")
    with (tmp_path / "log").open("rb") as log:
        assert base.read_bounded(log, 16) == "abcd\nmnop"
        log.seek(0)
        assert base.read_bounded(log, 8) == "abcdefgh"


def test_reasons_of_signatures_are_of_the_closed_list() -> None:
    assert {signature.reason for signature in criu_log.SIGNATURES} <= set(REASONS)


@pytest.mark.parametrize("log", ["dump-process.log", "restore-process.log"])
def test_a_success_has_no_error_although_it_shows_the_rlimit_line(criu: Path, log: str) -> None:
    text = (criu / log).read_text()
    assert "Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE" in text
    assert criu_log.error_lines(text) == []
    assert criu_log.silent_failures(text) == []


@pytest.mark.parametrize(
    "line",
    [
        "(02.1) cuda_plugin: Failed to resume devices on pid 7",
        "(02.1) RESUME_DEVICES_LATE hook failed for pid 7",
        "(02.1) cuda_plugin: cuda-checkpoint could not be started",
    ],
)
def test_hidden_failures_are_seen(line: str) -> None:
    assert criu_log.silent_failures(f"(02.0) fine\n{line}\n") == [line]


# As CRIU 4.2.1's own plugin words it (plugins/cuda/cuda_plugin.c) for a process without a context.
PASSED_OVER = (
    "(09.1) cuda_plugin: cuda-checkpoint output ===>\n"
    "cuda-checkpoint: restore thread of pid {pid} failed: not a CUDA process\n"
    "<=== cuda-checkpoint output\n"
    "(09.1) Error (cuda_plugin.c:221): cuda_plugin: Failed to launch cuda-checkpoint to retrieve restore tid: no thread\n"
    "(09.1) cuda_plugin: No need to resume devices on pid {pid}\n"
)


def test_the_released_plugin_may_pass_over_as_many_processes_as_use_no_gpu() -> None:
    assert criu_log.silent_failures(PASSED_OVER.format(pid=7), plain_processes=1) == []


def test_one_more_passed_over_is_a_cuda_process_without_its_gpu() -> None:
    text = PASSED_OVER.format(pid=7) + PASSED_OVER.format(pid=9)
    found = criu_log.silent_failures(text, plain_processes=1)
    assert len(found) == 2
    assert all("retrieve restore tid" in line for line in found)


def test_a_disabled_plugin_is_no_failure() -> None:
    assert criu_log.silent_failures("(00.0) cuda_plugin: No GPU device found; CUDA plugin is disabled") == []


def test_spans_of_several_processes_become_one() -> None:
    text = (
        "(01.0) gpuckpt: span name=cuda-restore pid=7 start=100.250000 end=101.000000 bytes=4096 note=ok\n"
        "(01.1) gpuckpt: span name=cuda-restore pid=9 start=100.500000 end=102.125000 bytes=1024 note=ok\n"
        "(01.1) gpuckpt: span name=broken pid=9 start=x end=102.125000 bytes=1024 note=ok\n"
    )
    assert criu_log.spans(text) == {"cuda-restore": (100.25, 102.125, 5120)}


def test_action_scripts_that_took_time_are_phases() -> None:
    lines = criu_log.parse("(00.100000) Running pre-restore scripts\n(00.350000) next\n(00.400000) Running x scripts\n")
    assert criu_log.script_phases(lines) == {"script_pre_restore": (0.1, 0.35)}


def test_pie_lines_take_the_stamp_before_them() -> None:
    lines = criu_log.parse("(00.5) a\npie: 7: b\n\n(00.6) c")
    assert [(line.seconds, line.text) for line in lines] == [(0.5, "a"), (0.5, "pie: 7: b"), (0.6, "c")]


def test_start_of_log_is_on_the_monotonic_clock() -> None:
    lines = criu_log.parse("(00.0) a\n(02.0) b")
    start = criu_log.start_of_log(time.time(), lines)
    assert start == pytest.approx(time.monotonic() - 2, abs=0.05)
    assert criu_log.start_of_log(time.time(), []) is None


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("(00.000046) Loaded kdat cache from /run/criu.kdat", "loaded"),
        ("(00.000077) File /run/criu.kdat does not exist", "probed"),
        ("(00.000080) Warn  (criu/kerndat.c:1250): Stale /run/criu.kdat file", "probed"),
        ("", None),
    ],
)
def test_whether_criu_probed_the_kernel_is_told(log, found):
    assert criu_log.kernel_cache(log) == found
