# SPDX-License-Identifier: GPL-3.0-or-later
"""libgpuckpt_staging.so in a program: what it gives in the driver's place, and how it puts memory aside. No CRIU."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
OUT_OF_MEMORY, INVALID_VALUE, NOT_SUPPORTED = 2, 1, 801

Run = RunOnFake = Callable[..., Any]


@pytest.fixture
def run(run_on_fake: RunOnFake, tools, tmp_path: Path) -> Run:
    """Runs a script in a program with the library, and returns what it calls `told` at its end."""

    def run_script(script: str, **environment: str) -> Any:
        library = {"LD_PRELOAD": str(tools.staging), "FILE": str(tmp_path / "staged")}
        return run_on_fake(script, **library, **environment)

    return run_script


# --- memory as the driver gives it ---


def test_large_memory_is_ours_and_small_memory_the_drivers(run: Run) -> None:
    told = run("""
        begin()
        small = allocate(2 * MIB - 1)
        before = [name for name in thread_names() if name.startswith("gpuckpt:")]
        large = allocate(2 * MIB)
        told = [before, ask(ASK)["bytes"] >> 20, large % (2 * MIB)]
        free(large); free(small)
        told += [ask(ASK)["bytes"], used() >> 20]
    """)
    assert told == [[], 2, 0, 0, 512], "the context alone takes memory at the end"


def test_what_programs_ask_about_memory_is_answered_as_the_driver_would(run: Run) -> None:
    told = run("""
        context = begin()
        pointer = allocate(3 * MIB + 5)
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(pointer + 3 * MIB))
        several = [ctypes.c_uint64(), ctypes.c_uint64()]
        call("cuPointerGetAttributes", 2, (ctypes.c_int * 2)(12, 1),
             (ctypes.c_void_p * 2)(*[ctypes.addressof(one) for one in several]), ctypes.c_uint64(pointer))
        told = [base.value == pointer, size.value, attribute(1, pointer + 9) == context, attribute(11, pointer + 9) == pointer,
                attribute(12, pointer), several[0].value, several[1].value == context]
    """)
    assert told == [True, (3 << 20) + 5, True, True, (3 << 20) + 5, (3 << 20) + 5, True]


def test_too_much_memory_is_refused_as_the_driver_does(run: Run) -> None:
    told = run("""
        begin()
        told = [why(allocate, 100 << 40), why(allocate, 0)]
        kept = [allocate(512 * MIB) for _ in range(14)]
        told += [why(allocate, 600 * MIB), len(kept)]
        free(kept.pop())
        told.append(why(allocate, 512 * MIB))
    """)
    assert told == [OUT_OF_MEMORY, INVALID_VALUE, OUT_OF_MEMORY, 14, None]


@pytest.mark.parametrize("name", ["cuMemAddressReserve", "cuMemCreate", "cuMemMap", "cuMemSetAccess"])
def test_what_cannot_be_mapped_is_the_drivers(name: str, run: Run) -> None:
    told = run(
        """
        begin()
        first, second = allocate(4 * MIB), allocate(4 * MIB)
        write(first, b"a" * 9); write(second, b"b" * 9)
        told = [read(first, 9).decode(), read(second, 9).decode(), ask(ASK)["bytes"] >> 20]
        free(first); free(second)
        told.append(used() >> 20)
        """,
        GPUCKPT_FAKE_FAULTS=f"{name}:*:1:1",
    )
    assert told == ["a" * 9, "b" * 9, 4, 512], "the second one is ours, and nothing is left of the first"


def test_rows_have_a_pitch(run: Run) -> None:
    told = run("""
        begin()
        pointer, pitch = ctypes.c_uint64(), ctypes.c_size_t()
        call("cuMemAllocPitch_v2", ctypes.byref(pointer), ctypes.byref(pitch), ctypes.c_size_t(1000), ctypes.c_size_t(4096), 4)
        told = [pitch.value, attribute(12, pointer.value)]
    """)
    assert told == [1024, 4 << 20]


def test_memory_for_other_processes_is_refused_with_a_reason(run: Run) -> None:
    told = run("""
        begin()
        handle = ctypes.create_string_buffer(64)
        told = [why(call, "cuIpcGetMemHandle", handle, ctypes.c_uint64(allocate(size))) for size in (MIB, 4 * MIB, 4 * MIB)]
    """)
    assert told == [None, NOT_SUPPORTED, NOT_SUPPORTED]


def test_the_end_of_a_context_ends_its_memory(run: Run) -> None:
    told = run("""
        begin()
        allocate(8 * MIB)
        call("cuDevicePrimaryCtxRelease_v2", 0)
        begin()
        told = [ask(ASK)["bytes"], used() >> 20]
    """)
    assert told == [0, 512]


@pytest.mark.parametrize(
    ("name", "value"),
    [("GPUCKPT_STAGING", "yes"), ("GPUCKPT_STAGING_MIN_MIB", "-1"), ("GPUCKPT_STAGING_THREADS", "0x2")],
)
def test_a_wrong_setting_is_told_and_nothing_is_staged(name: str, value: str, tools, tmp_path: Path) -> None:
    (tmp_path / "gpu").mkdir()
    script = "from staged_program import *\nbegin(); write(allocate(4 << 20), b'x')\nprint(thread_names())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "GPUCKPT_FAKE_DIR": str(tmp_path / "gpu"),
            "GPUCKPT_LIBCUDA": str(tools.driver),
            "LD_PRELOAD": str(tools.staging),
            "PYTHONPATH": str(HERE),
            name: value,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"gpuckpt_staging: {name}={value} is " in done.stderr
    assert "gpuckpt:" not in done.stdout


# --- aside and back ---


def test_memory_is_put_aside_and_comes_back_at_the_same_addresses(run: Run) -> None:
    told = run("""
        begin()
        pointers = [allocate(size) for size in (2 * MIB, 5 * MIB + 3, 9 * MIB)]
        data = [os.urandom(size) for size in (2 * MIB, 5 * MIB + 3, 9 * MIB)]
        for pointer, content in zip(pointers, data): write(pointer, content)
        before = used()
        aside = ask(STAGE, os.environ["FILE"])
        away = [before, Path(os.environ["FILE"]).stat().st_size]
        back = ask(BRING_BACK, os.environ["FILE"])
        told = [aside["staged"], aside["bytes"], away[1] - aside["bytes"], back["staged"], used() == before,
                [read(pointer, len(content)) == content for pointer, content in zip(pointers, data)]]
    """)
    assert told == [1, (16 << 20) + 3, 4096, 0, True, [True] * 3]


def test_zeros_take_no_room_in_the_file_and_dropped_memory_none(run: Run) -> None:
    told = run("""
        begin()
        zeros, cache, data = allocate(16 * MIB), allocate(32 * MIB), allocate(4 * MIB)
        write(zeros, bytes(16 * MIB)); write(cache, b"c" * 32 * MIB); write(data, b"d" * 4 * MIB)
        library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        known = [library.gpuckpt_staging_drop(ctypes.c_uint64(pointer), 1) for pointer in (cache, cache + 1)]
        aside = ask(STAGE, os.environ["FILE"])
        blocks = Path(os.environ["FILE"]).stat().st_blocks * 512
        ask(BRING_BACK, os.environ["FILE"])
        told = [known, aside, blocks <= 4 * MIB + 8192, read(zeros, 16 * MIB) == bytes(16 * MIB), read(data, 5).decode(),
                len(read(cache, 32 * MIB)) >> 20]
    """)
    aside = {"staged": 1, "bytes": 52 << 20, "zeros": 16 << 20, "dropped": 32 << 20}
    assert told == [[0, -1], aside, True, True, "ddddd", 32]


def test_work_that_is_under_way_is_in_the_file(run: Run) -> None:
    """The call has returned, and the GPU has not begun yet."""
    told = run(
        """
        begin()
        pointer = allocate(4 * MIB)
        call("cuMemsetD8Async", ctypes.c_uint64(pointer), ctypes.c_ubyte(7), ctypes.c_size_t(4 * MIB), None)
        ask(STAGE, os.environ["FILE"], 5000)
        content = Path(os.environ["FILE"]).read_bytes()[4096:]
        ask(BRING_BACK, os.environ["FILE"])
        told = [content == bytes([7]) * 4 * MIB, read(pointer, 3).hex()]
        """,
        GPUCKPT_FAKE_WORK_MS="100",
    )
    assert told == [True, "070707"]


def test_work_that_does_not_end_is_a_refusal_and_the_program_goes_on(run: Run) -> None:
    told = run(
        """
        begin()
        pointer = allocate(4 * MIB)
        call("cuMemsetD8Async", ctypes.c_uint64(pointer), ctypes.c_ubyte(7), ctypes.c_size_t(4 * MIB), None)
        told = [why(ask, STAGE, os.environ["FILE"], 200), read(pointer, 3).hex(), ask(ASK)["staged"]]
        """,
        GPUCKPT_FAKE_WORK_MS="1500",
    )
    assert told == ["work on the GPU does not end within 200 ms", "070707", 0]


def test_nothing_is_put_aside_during_a_capture(run: Run) -> None:
    told = run("""
        begin()
        pointer, freed = allocate(4 * MIB), allocate(4 * MIB)
        write(pointer, b"capture")
        graph = ctypes.c_void_p()
        call("cuStreamBeginCapture_v2", ctypes.c_void_p(8), 0)
        before = used()
        free(freed)
        told = [why(ask, STAGE, os.environ["FILE"], 100), used() == before, read(pointer, 7).decode()]
        call("cuStreamEndCapture", ctypes.c_void_p(8), ctypes.byref(graph))
        aside = ask(STAGE, os.environ["FILE"])
        ask(BRING_BACK, os.environ["FILE"])
        told += [aside["bytes"] >> 20, read(pointer, 7).decode()]
        free(allocate(4 * MIB))
        told.append(before - used() >> 20)
    """)
    assert told == ["the program is capturing a graph", True, "capture", 4, "capture", 4]


def test_a_call_waits_while_memory_is_away_and_other_threads_of_the_program_run(run: Run) -> None:
    told = run("""
        context = begin()
        pointer = allocate(4 * MIB)
        write(pointer, b"before")
        ask(STAGE, os.environ["FILE"])
        seen = []
        def look():
            call("cuCtxSetCurrent", ctypes.c_void_p(context))
            seen.append(read(pointer, 6).decode())
        reader = threading.Thread(target=look)
        reader.start()
        time.sleep(0.2)
        told = [list(seen)]
        ask(BRING_BACK, os.environ["FILE"])
        reader.join()
        told.append(seen)
    """)
    assert told == [[], ["before"]]


def test_a_busy_program_is_counted_as_well(run: Run) -> None:
    told = run(
        """
        context = begin()
        pointer = allocate(4 * MIB)
        def work():
            call("cuCtxSetCurrent", ctypes.c_void_p(context))
            write(pointer, b"x" * 9)
        worker = threading.Thread(target=work)
        worker.start()
        time.sleep(0.05)
        told = [ask(ASK), worker.is_alive()]
        worker.join()
        """,
        GPUCKPT_FAKE_WORK_MS="500",
    )
    assert told == [{"staged": 0, "bytes": 4 << 20, "zeros": 0, "dropped": 0}, True]


def test_a_wrong_file_is_refused_and_the_right_one_taken_afterwards(run: Run) -> None:
    told = run("""
        begin()
        pointer = allocate(4 * MIB)
        write(pointer, b"right")
        ask(STAGE, os.environ["FILE"])
        good = Path(os.environ["FILE"]).read_bytes()
        told = []
        for wrong in (b"", good[:4096] + b"x" + good[4097:], good[:-1], b"x" * len(good)):
            Path(os.environ["FILE"]).write_bytes(wrong)
            told.append(why(ask, BRING_BACK, os.environ["FILE"]))
        told.append(why(ask, BRING_BACK))
        Path(os.environ["FILE"]).write_bytes(good)
        ask(BRING_BACK, os.environ["FILE"])
        told.append(read(pointer, 5).decode())
    """)
    size = (4 << 20) + 4096
    assert told == [
        "its staging file is none",
        "the staging file is damaged at offset 4096, or belongs to another checkpoint",
        f"the staging file has {size - 1} bytes instead of {size}",
        "its staging file is none",
        "its staging file is missing",
        "right",
    ]


@pytest.mark.parametrize("name", ["cuMemCreate", "cuMemMap", "cuMemSetAccess", "cuMemcpyHtoDAsync", "cuStreamCreate"])
def test_a_failure_on_the_way_back_can_be_tried_again(name: str, run: Run) -> None:
    told = run(
        """
        begin()
        pointers = [allocate(4 * MIB) for _ in range(3)]
        for number, pointer in enumerate(pointers): write(pointer, bytes([65 + number]) * 4 * MIB)
        ask(STAGE, os.environ["FILE"])
        os.environ["GPUCKPT_FAKE_FAULTS"] = os.environ["LATER"]
        told = [why(ask, BRING_BACK, os.environ["FILE"]) is not None, ask(ASK)["staged"]]
        os.environ["GPUCKPT_FAKE_FAULTS"] = ""
        ask(BRING_BACK, os.environ["FILE"])
        told += [read(pointer, 4 * MIB) == bytes([65 + number]) * 4 * MIB for number, pointer in enumerate(pointers)]
        """,
        LATER=f"{name}:*:1:1",
    )
    assert told == [True, 1, True, True, True]


def test_two_gpus(run: Run) -> None:
    told = run(
        """
        first = begin(0)
        on_first = allocate(4 * MIB)
        write(on_first, b"first")
        second = begin(1)
        on_second = allocate(6 * MIB)
        write(on_second, b"second")
        call("cuCtxEnablePeerAccess", ctypes.c_void_p(first), 0)
        aside = ask(STAGE, os.environ["FILE"])
        ask(BRING_BACK, os.environ["FILE"])
        told = [aside["bytes"] >> 20, read(on_first, 5).decode(), read(on_second, 6).decode(),
                attribute(9, on_first), attribute(9, on_second), attribute(1, on_second) == second]
        """,
        GPUCKPT_FAKE_GPUS="2",
    )
    assert told == [10, "first", "second", 0, 1, True]


def test_a_gpu_that_may_use_the_memory_of_another_still_may_afterwards(run: Run) -> None:
    told = run(
        """
        first = begin(0)
        before = allocate(4 * MIB)
        begin(1)
        call("cuCtxEnablePeerAccess", ctypes.c_void_p(first), 0)
        call("cuCtxSetCurrent", ctypes.c_void_p(first))
        after = allocate(4 * MIB)
        write(before, bytes(4)); write(after, bytes(4))
        begin(1)
        add(before, 4, 1); add(after, 4, 2)
        ask(STAGE, os.environ["FILE"])
        ask(BRING_BACK, os.environ["FILE"])
        add(before, 4, 1); add(after, 4, 2)
        told = [read(before, 4).hex(), read(after, 4).hex()]
        """,
        GPUCKPT_FAKE_GPUS="2",
    )
    assert told == ["02020202", "04040404"]


def test_what_the_drivers_pool_keeps_is_given_back_and_what_is_used_of_it_stays(run: Run) -> None:
    told = run("""
        begin()
        write(allocate(4 * MIB), b"x")
        pointers, pool = [ctypes.c_uint64(), ctypes.c_uint64()], ctypes.c_void_p()
        # it keeps all that is freed, as frameworks want it
        call("cuDeviceGetDefaultMemPool", ctypes.byref(pool), 0)
        call("cuMemPoolSetAttribute", pool, 4, ctypes.byref(ctypes.c_uint64(1 << 60)))
        for pointer in pointers:
            call("cuMemAllocAsync", ctypes.byref(pointer), ctypes.c_size_t(8 * MIB), None)
        write(pointers[0].value, b"used")
        call("cuMemFreeAsync", pointers[1], None)
        ask(STAGE, os.environ["FILE"])
        # the driver's calls pass the gate, but files tell what is left
        left = sum(path.stat().st_size for path in Path(os.environ["GPUCKPT_FAKE_DIR"]).glob("memory.*"))
        ask(BRING_BACK, os.environ["FILE"])
        told = [left >> 20, read(pointers[0].value, 4).decode()]
    """)
    assert told == [8, "used"]


def test_programs_with_a_default_stream_of_each_thread_meet_the_library(run: Run) -> None:
    told = run("""
        context = begin()
        pointer, address = allocate(4 * MIB), ctypes.c_void_p()
        library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        call("cuGetProcAddress_v2", b"cuMemcpyHtoD", ctypes.byref(address), 12080, ctypes.c_uint64(2), None)
        ours = address.value == ctypes.cast(library.cuMemcpyHtoD_v2_ptds, ctypes.c_void_p).value
        copy = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t)(address.value)
        ask(STAGE, os.environ["FILE"])
        seen = []
        def go():
            call("cuCtxSetCurrent", ctypes.c_void_p(context))
            seen.append(copy(pointer, b"own", 3))
        writer = threading.Thread(target=go)
        writer.start()
        time.sleep(0.2)
        told = [ours, list(seen)]
        ask(BRING_BACK, os.environ["FILE"])
        writer.join()
        told += [seen, read(pointer, 3).decode()]
    """)
    assert told == [True, [], [0], "own"]


def test_memory_that_another_gpu_still_reads_is_freed_afterwards(run: Run) -> None:
    told = run(
        """
        first = begin(0)
        source = allocate(4 * MIB)
        write(source, b"source")
        second = begin(1)
        target = allocate(4 * MIB)
        call("cuCtxEnablePeerAccess", ctypes.c_void_p(first), 0)
        call("cuMemcpyDtoDAsync_v2", *[ctypes.c_uint64(one) for one in (target, source, 4 * MIB)], None)
        call("cuCtxSetCurrent", ctypes.c_void_p(first))
        free(source)
        call("cuCtxSetCurrent", ctypes.c_void_p(second))
        told = read(target, 6).decode()
        """,
        GPUCKPT_FAKE_GPUS="2",
        GPUCKPT_FAKE_WORK_MS="200",
    )
    assert told == "source"


def test_a_child_is_left_alone(run: Run) -> None:
    told = run("""
        begin()
        write(allocate(4 * MIB), b"x")
        parent, child = os.pipe()
        if not os.fork():
            os.write(child, repr([name for name in thread_names() if name.startswith("gpuckpt:")]).encode())
            os._exit(0)
        told = [os.read(parent, 99).decode(), os.wait()[1], ask(ASK)["bytes"] >> 20]
    """)
    assert told == ["[]", 0, 4]


def test_other_functions_are_found_as_without_the_library(run: Run) -> None:
    told = run("""
        nothing = ctypes.CDLL(None)
        told = [bool(nothing.getpid), hasattr(nothing, "cuda_is_no_function"), hasattr(nothing, "curs_set")]
    """)
    assert told == [True, False, False]


# --- under pressure ---


@pytest.mark.parametrize(("build", "seed"), [("staging_workload_asan", 1), ("staging_workload_tsan", 2)])
def test_threads_that_race_with_it_find_what_they_wrote(build: str, seed: int, tools, tmp_path: Path) -> None:
    (tmp_path / "gpu").mkdir()
    options = ["--seed", str(seed), "--threads", "4", "--rounds", "4", "--file", tmp_path / "staged", "--proc-address"]
    # The leak checker's own look at the memory of threads crashes now and then. What the C library keeps there for
    # dlerror looks lost without it.
    (tmp_path / "kept").write_text("leak:_dlerror_run\nleak:_dl_exception_create\n")
    done = subprocess.run(
        [tools.folder / build, *options],
        env={
            **os.environ,
            "GPUCKPT_FAKE_DIR": str(tmp_path / "gpu"),
            "GPUCKPT_FAKE_ANYWHERE": "1",
            "GPUCKPT_LIBCUDA": str(tools.driver),
            "LSAN_OPTIONS": f"use_tls=0:print_suppressions=0:suppressions={tmp_path / 'kept'}",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    steps, away = (int(word.partition("=")[2]) for word in done.stdout.split())
    assert steps >= 4 * 20
    assert away == 0, "no step ends while the memory is away"


def test_fifty_cycles_leave_nothing(run: Run) -> None:
    told = run("""
        begin()
        pointer = allocate(6 * MIB)
        content = os.urandom(6 * MIB)
        write(pointer, content)
        def state():
            return [len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), used(),
                    len(Path("/proc/self/maps").read_text().splitlines())]
        counts = []
        for number in range(50):
            ask(STAGE, os.environ["FILE"])
            ask(BRING_BACK, os.environ["FILE"])
            counts.append(state())
        told = [counts[4][:3] == counts[-1][:3], counts[-1][3] - counts[4][3] < 5, read(pointer, 6 * MIB) == content]
    """)
    assert told == [True, True, True]
