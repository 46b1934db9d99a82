# SPDX-License-Identifier: GPL-3.0-or-later
"""The fake driver refuses what CUDA refuses: else tests of the staging library could not fail."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from criu_harness import descendants, kill, wait_until

HERE = Path(__file__).resolve().parent
INVALID_VALUE, OUT_OF_MEMORY, INVALID_CONTEXT, NOT_READY, ILLEGAL_ADDRESS = 1, 2, 201, 600, 700

PRELUDE = """
import json, os, sys, threading, time
from staged_program import *
P, S, I = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int

def place(device=0, handle_types=0):
    return (ctypes.c_int * 8)(1, handle_types, 1, device)

def access(*devices):
    return (ctypes.c_int * (3 * len(devices)))(*[word for device in devices for word in (1, device, 3)])

def reserve(size):
    pointer = P()
    call("cuMemAddressReserve", ctypes.byref(pointer), S(size), S(0), P(0), P(0))
    return pointer.value

def create(size, device=0, handle_types=0):
    handle = P()
    call("cuMemCreate", ctypes.byref(handle), S(size), place(device, handle_types), P(0))
    return handle.value

def map_at(pointer, size, handle):
    call("cuMemMap", P(pointer), S(size), S(0), P(handle), P(0))

def allow(pointer, size, *devices):
    call("cuMemSetAccess", P(pointer), S(size), access(*devices), S(len(devices)))

def unmap(pointer, size):
    call("cuMemUnmap", P(pointer), S(size))

def release(handle):
    call("cuMemRelease", P(handle))

def synchronize():
    call("cuCtxSynchronize")
"""

Run = Callable[..., Any]


@pytest.fixture
def run(run_on_fake: Callable[..., Any]) -> Run:
    """Runs a script on the fake driver, without any library, and returns what it calls `told` at its end."""

    def run_script(script: str, **environment: str) -> Any:
        return run_on_fake(f"{PRELUDE}{textwrap.dedent(script)}", **environment)

    return run_script


def test_memory_is_there_once_it_is_mapped_and_allowed(run: Run) -> None:
    told = run("""
        begin()
        pointer, handle = reserve(8 * MIB), create(4 * MIB)
        before = used() >> 20
        map_at(pointer + 2 * MIB, 4 * MIB, handle)
        allow(pointer + 2 * MIB, 4 * MIB, 0)
        write(pointer + 2 * MIB, b"mapped")
        release(handle)
        told = [before, used() >> 20, read(pointer + 2 * MIB, 6).decode(), attribute(1, pointer + 2 * MIB)]
        unmap(pointer + 2 * MIB, 4 * MIB)
        told.append(used() >> 20)
    """)
    assert told == [516, 516, "mapped", 0, 512], "of no context, and gone with the last mapping"


@pytest.mark.parametrize(
    "action",
    [
        "reserve(MIB)",
        "create(3 * MIB)",
        "create(2 * MIB, device=1)",
        "map_at(pointer + MIB, 2 * MIB, handle)",
        "map_at(pointer + 6 * MIB, 4 * MIB, handle)",
        "map_at(taken, 2 * MIB, handle)",
        "map_at(pointer, 2 * MIB, old)",
        "allow(pointer, 2 * MIB, 0)",
        "allow(taken, 2 * MIB, 1)",
        "unmap(pointer, 2 * MIB)",
        "unmap(taken, 2 * MIB)",
        "release(old)",
        "release(handle + 1)",
        'call("cuMemAddressFree", P(pointer), S(8 * MIB))',
        "free(taken)",
        'call("cuIpcGetMemHandle", ctypes.create_string_buffer(64), P(taken))',
    ],
)
def test_wrong_arguments_are_refused(action: str, run: Run) -> None:
    told = run(f"""
        begin()
        pointer, handle, old = reserve(8 * MIB), create(4 * MIB), create(2 * MIB)
        taken = pointer + 4 * MIB
        map_at(taken, 4 * MIB, handle)
        allow(taken, 4 * MIB, 0)
        release(old)
        create(2 * MIB)
        try:
            {action}
            told = 0
        except RefusedError as refusal:
            told = refusal.args[0]
    """)
    assert told == INVALID_VALUE


@pytest.mark.parametrize(
    ("missing", "result"),
    [("map", ILLEGAL_ADDRESS), ("allow", ILLEGAL_ADDRESS), ("nothing", 0), ("unmapped too early", ILLEGAL_ADDRESS)],
)
def test_an_access_to_what_is_not_there_ends_all_further_calls(missing: str, result: int, run: Run) -> None:
    told = run(
        """
        begin()
        pointer, handle, missing = reserve(2 * MIB), create(2 * MIB), os.environ["MISSING"]
        if missing != "map":
            map_at(pointer, 2 * MIB, handle)
            if missing != "allow":
                allow(pointer, 2 * MIB, 0)
        add(pointer, 5, 1)
        if missing == "unmapped too early":
            unmap(pointer, 2 * MIB)
        told = [why(synchronize) or 0, why(allocate, 512) or 0, why(used) if missing != "nothing" else 0]
        """,
        MISSING=missing,
        GPUCKPT_FAKE_WORK_MS="50",
    )
    assert told == [result] * 3


@pytest.mark.parametrize(("peers", "result"), [("1", 0), ("0", ILLEGAL_ADDRESS)])
def test_a_gpu_uses_the_memory_of_another_if_it_may(peers: str, result: int, run: Run) -> None:
    told = run(
        """
        first = begin(0)
        pointer = allocate(MIB)
        write(pointer, b"abc")
        begin(1)
        if os.environ["PEERS"] == "1":
            call("cuCtxEnablePeerAccess", ctypes.c_void_p(first), 0)
        add(pointer, 3, 1)
        told = why(synchronize) or 0
        """,
        PEERS=peers,
        GPUCKPT_FAKE_GPUS="2",
    )
    assert told == result


def test_each_gpu_has_memory_of_its_own(run: Run) -> None:
    told = run(
        """
        begin(0)
        allocate(4 * MIB)
        told = [used() >> 20]
        begin(1)
        told.append(used() >> 20)
        told.append(why(allocate, 600 * MIB))
        create(4 * MIB, device=0)
        told.append(used() >> 20)
        """,
        GPUCKPT_FAKE_GPUS="2",
        GPUCKPT_FAKE_TOTAL_MB="1024",
    )
    assert told == [516, 512, OUT_OF_MEMORY, 512]


def test_streams_run_side_by_side_and_the_default_stream_waits_for_them(run: Run) -> None:
    told = run(
        """
        begin()
        def stream(flags):
            made = ctypes.c_void_p()
            call("cuStreamCreate", ctypes.byref(made), flags)
            return made
        def fill(pointer, stream):
            call("cuMemsetD8Async", P(pointer), ctypes.c_ubyte(1), S(4), stream)
        alone, another, blocking = stream(1), stream(1), stream(0)
        pointer = allocate(512)
        for _ in range(10):
            fill(pointer, alone)
        fill(pointer + 4, another)
        call("cuStreamSynchronize", another)
        told = [why(call, "cuStreamQuery", alone), why(call, "cuStreamQuery", another)]
        fill(pointer + 8, blocking)
        fill(pointer + 8, blocking)
        told += [read(pointer + 8, 4).hex(), why(call, "cuStreamQuery", alone)]
        told.append(why(call, "cuStreamSynchronize", ctypes.c_void_p(99)))
        """,
        GPUCKPT_FAKE_WORK_MS="50",
    )
    assert told == [NOT_READY, None, "01010101", NOT_READY, 400]


def test_memory_that_was_freed_in_order_stays_until_somebody_waits_or_trims(run: Run) -> None:
    told = run("""
        begin()
        def ordered():
            pointer = P()
            call("cuMemAllocAsync", ctypes.byref(pointer), S(4 * MIB), None)
            return pointer.value
        pointer, pool = ordered(), ctypes.c_void_p()
        call("cuDeviceGetDefaultMemPool", ctypes.byref(pool), 0)
        call("cuMemFreeAsync", P(pointer), None)
        while why(call, "cuStreamQuery", None):
            time.sleep(0.001)
        told = [used() >> 20, ordered() == pointer]
        call("cuMemFreeAsync", P(pointer), None)
        while why(call, "cuStreamQuery", None):
            time.sleep(0.001)
        call("cuMemPoolTrimTo", pool, S(0))
        told += [used() >> 20, why(read, pointer, 1)]
    """)
    assert told == [516, True, 512, ILLEGAL_ADDRESS]


@pytest.mark.parametrize(("keeps", "left"), [(0, 512), (1 << 60, 516)])
def test_a_pool_keeps_as_much_as_it_may(keeps: int, left: int, run: Run) -> None:
    told = run(f"""
        begin()
        pointer, pool = P(), ctypes.c_void_p()
        call("cuDeviceGetDefaultMemPool", ctypes.byref(pool), 0)
        call("cuMemPoolSetAttribute", pool, 4, ctypes.byref(P({keeps})))
        call("cuMemAllocAsync", ctypes.byref(pointer), S(4 * MIB), None)
        call("cuMemFreeAsync", pointer, None)
        synchronize()
        told = used() >> 20
    """)
    assert told == left


def test_names_mean_the_variants_that_the_program_asks_for(run: Run) -> None:
    told = run("""
        def found(name, flags):
            address = ctypes.c_void_p()
            call("cuGetProcAddress_v2", name, ctypes.byref(address), 12080, P(flags), None)
            return address.value
        def exported(name):
            return ctypes.cast(getattr(driver, name), ctypes.c_void_p).value
        told = [found(b"cuMemcpyHtoD", 0) == exported("cuMemcpyHtoD_v2"),
                found(b"cuMemcpyHtoD", 2) == exported("cuMemcpyHtoD_v2_ptds"),
                found(b"cuMemsetD8Async", 2) == exported("cuMemsetD8Async_ptsz"),
                found(b"cuMemAlloc", 2) == exported("cuMemAlloc_v2"), why(found, b"cuMemcp", 0)]
    """)
    assert told == [True, True, True, True, 500]


def test_contexts_that_are_gone_cannot_be_used(run: Run) -> None:
    told = run("""
        context = begin()
        kept, pointer = create(2 * MIB), allocate(4 * MIB)
        call("cuDevicePrimaryCtxRelease_v2", 0)
        told = [why(call, "cuCtxSetCurrent", ctypes.c_void_p(context)), used() >> 20]
        begin()
        told += [why(free, pointer), used() >> 20]
    """)
    assert told == [INVALID_CONTEXT, 2, INVALID_VALUE, 514], "memory of cuMemCreate is of no context"


# --- the lock of a checkpoint, and what it carries ---


def act(tools, folder: Path, pid: int, action: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tools.cuda_checkpoint, "--action", action, "--pid", str(pid)],
        env=tools.on_fake(folder),
        capture_output=True,
        text=True,
        check=False,
    )


def start(tools, folder: Path, script: str, **more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", f"{PRELUDE}\n{textwrap.dedent(script)}"],
        env=tools.on_fake(folder, READY=str(folder / "ready"), **more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: (folder / "ready").exists() or process.poll() is not None, "the program")
    assert process.poll() is None, "it has ended"
    return process


def test_the_lock_waits_for_work_that_came_before_it(tools, tmp_path: Path) -> None:
    script = """
        begin()
        pointer = allocate(4)
        for _ in range(5):
            add(pointer, 4, 1)
        open(os.environ["READY"], "w")
        input()
        print(read(pointer, 4).hex())
    """
    with start(tools, tmp_path, script, GPUCKPT_FAKE_WORK_MS="100") as process:
        for action in ("lock", "checkpoint", "restore", "unlock"):
            assert act(tools, tmp_path, process.pid, action).returncode == 0
        assert process.communicate("\n")[0] == "05050505\n"


def test_memory_that_another_process_imported_is_not_restored(tools, tmp_path: Path) -> None:
    script = """
        begin()
        handle = create(2 * MIB, handle_types=1)
        shared = ctypes.c_int()
        call("cuMemExportToShareableHandle", ctypes.byref(shared), P(handle), 1, P(0))
        os.set_inheritable(shared.value, True)
        if not os.fork():
            os.execv(sys.executable, [sys.executable, "-c", os.environ["IMPORTER"], str(shared.value)])
        os.close(shared.value)
        input()
    """
    importer = f"""{PRELUDE}
begin()
handle = P()
call("cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(int(sys.argv[1])), 1)
open(os.environ["READY"], "w")
time.sleep(600)
"""
    with start(tools, tmp_path, script, IMPORTER=importer) as process:
        for action in ("lock", "checkpoint"):
            assert act(tools, tmp_path, process.pid, action).returncode == 0
        restore = act(tools, tmp_path, process.pid, "restore")
        for pid in reversed(descendants(process.pid)):
            kill(pid)
    assert restore.returncode == 1
    assert "CUDA_ERROR_NOT_SUPPORTED" in restore.stderr
