# SPDX-License-Identifier: GPL-3.0-or-later
"""Allocators that rely on zeros after MADV_DONTNEED: their memory is read, unless a switch says that it may be mapped."""

import ctypes.util
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from criu_harness import MIB, Target, image_ranges, largest_mapping

SOURCE = Path(__file__).parent / "programs/semantics.c"
MAPPED = {"CRIU_MAPPED_RESTORE": "1"}
TRUST = {**MAPPED, "CRIU_MAPPED_ALLOCATORS": "trust"}
OLD_BYTES = [["calloc", "returned", "memory", "that", "is", "not", "zero"]]


def library(name: str) -> str:
    """The file name of a shared library, as LD_PRELOAD takes it."""
    found = ctypes.util.find_library(name)
    if not found:
        pytest.skip(f"lib{name} is not installed: .ci/deps.sh brings it")
    return found


@pytest.fixture(scope="session")
def static_jemalloc(programs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with jemalloc linked in, as Redis and many programs in Rust have it: no file name tells of it."""
    library("jemalloc")
    program = tmp_path_factory.mktemp("jemalloc") / "semantics"
    command = ["gcc", "-O2", "-pthread", "-s", "-o", program, SOURCE, "-l:libjemalloc.a", "-lm", "-ldl"]
    subprocess.run(command, check=True)
    return program


@pytest.fixture(params=["jemalloc", "static-jemalloc", "tcmalloc_minimal"])
def allocator(request, programs, tmp_path, targets) -> Target:
    """A process that will free and calloc() memory; the allocator gives freed pages back at once."""
    report = tmp_path / "report"
    settings = ["MALLOC_CONF=dirty_decay_ms:0,muzzy_decay_ms:0", "TCMALLOC_RELEASE_RATE=10000"]
    if request.param == "static-jemalloc":
        program = request.getfixturevalue("static_jemalloc")
    else:
        settings.append(f"LD_PRELOAD={library(request.param)}")
        program = programs / "semantics"
    target = Target(["env", *settings, str(program), "calloc", str(report)], [report])
    targets.append(target)
    return target.start()


def test_memory_of_allocators_is_read(allocator, stock_build, patched_build, store):
    stock_build.dump(allocator, store / "images")
    outcome = patched_build.restored(store / "images", environment=MAPPED)
    assert "allocator" in outcome.notes("standaside")
    assert outcome.mapped_bytes < MIB
    assert allocator.ask() == [["ok"]]


@pytest.mark.parametrize("allocator", ["jemalloc", "static-jemalloc"], indirect=True)
def test_trust_maps_it(allocator, stock_build, patched_build, store):
    """What the switch risks is seen here, so the test above can fail."""
    stock_build.dump(allocator, store / "images")
    outcome = patched_build.restored(store / "images", environment=TRUST)
    assert outcome.mapped_bytes > 16 * MIB
    assert allocator.ask() == OLD_BYTES


@pytest.mark.parametrize("allocator", ["jemalloc"], indirect=True)
def test_what_the_driver_parked_is_mapped_all_the_same(allocator, stock_build, patched_build, store):
    start, _ = largest_mapping(allocator.pid)
    parked = (start + 8 * MIB, start + 9 * MIB)
    stock_build.dump(allocator, store / "images")
    (store / "images" / f"cuda-ranges-{allocator.pid}.txt").write_text(f"{parked[0]:x}-{parked[1]:x}\n")
    outcome = patched_build.restored(store / "images", environment=MAPPED)
    mapped = image_ranges(allocator.pid)
    assert 0 < outcome.mapped_bytes == sum(end - start for start, end in mapped)
    assert all(parked[0] <= start and end <= parked[1] for start, end in mapped)


def test_a_node_that_marks_no_memory(stock_build, patched_build, programs, store, tmp_path, targets):
    """With vm.overcommit_memory=2 the kernel forgets MAP_NORESERVE, so all memory may be an allocator's."""
    report = tmp_path / "report"
    target = Target([str(programs / "heap"), "private", "16", str(report)], [report])
    targets.append(target)
    expected = target.start().ask()
    stock_build.dump(target, store / "images")
    setting = tmp_path / "overcommit_memory"
    setting.write_text("2\n")
    # CRIU alone sees the setting: the kernel's own is everybody's, and others would run out of memory.
    changed = f'mount --bind {setting} /proc/sys/vm/overcommit_memory && exec "$@"'
    build = replace(patched_build, launcher=("unshare", "--mount", "sh", "-c", changed, "sh"))
    assert build.restored(store / "images", environment=MAPPED).mapped_bytes == 0
    assert target.ask() == expected
    target.stop()
    assert build.restored(store / "images", environment=TRUST).mapped_bytes > 12 * MIB
