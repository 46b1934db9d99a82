# SPDX-License-Identifier: GPL-3.0-or-later
"""GPU memory that programs put aside themselves, with libgpuckpt_staging.so, through real CRIU and a fake driver."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_harness import assert_lives, memory_files, ranges_of

MIB = 1 << 20
HEADER = 4096


def staged_files(images: Path) -> list[Path]:
    return sorted(images.glob("gpu-staged-*.img"))


def notes(spans) -> set[str]:
    return {span.note for span in spans}


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def staged(workload, criu):
    """A checkpoint of one program whose GPU memory is in its staging file, and the digests from before."""
    workload.start(mib=16, preload=criu.staging)
    digests = workload.digests()
    dump = criu.dump()
    assert dump.returncode == 0, dump.log
    assert notes(dump.named("gpu-stage")) == {"ok"}
    return digests


def test_a_tree_survives_twice_and_the_driver_carries_nothing(workload, criu):
    workload.start(processes=3, mib=16, preload=criu.staging)
    digests = workload.digests()
    dump = criu.dump()
    assert dump.returncode == 0, dump.log
    assert memory_files(workload) == [], "the GPU is free"
    assert [path.stat().st_size for path in staged_files(criu.images)] == [HEADER + 16 * MIB] * 3
    assert [span.bytes for span in dump.named("gpu-stage")] == [16 * MIB] * 3
    assert [ranges_of(criu.images, pid) for pid in workload.pids] == [[]] * 3
    assert "it held no GPU memory" not in dump.log
    for _ in range(2):
        restore = criu.restore()
        assert restore.returncode == 0, restore.log
        assert [(span.bytes, span.note) for span in restore.named("gpu-bring-back")] == [(16 * MIB, "ok")] * 3
        assert_lives(workload, digests)
        workload.stop()


def test_a_restored_program_is_checkpointed_again(staged, workload, criu, tmp_path):
    assert criu.restore().returncode == 0
    criu.images = tmp_path / "again"
    assert criu.dump().returncode == 0
    assert len(staged_files(criu.images)) == 1
    assert criu.restore().returncode == 0
    assert_lives(workload, staged)


def test_a_program_that_lives_on_takes_its_memory_back(workload, criu):
    workload.start(mib=16, preload=criu.staging)
    digests = workload.digests()
    assert criu.dump("--leave-running").returncode == 0
    assert_lives(workload, digests)
    workload.stop()
    assert criu.restore().returncode == 0
    assert_lives(workload, digests)


@pytest.mark.parametrize("fault", ["checkpoint:*:999", "lock:*:999"])
def test_a_dump_that_fails_afterwards_gives_the_memory_back(fault, workload, criu):
    workload.start(mib=16, preload=criu.staging)
    digests = workload.digests()
    assert criu.dump(GPUCKPT_FAKE_FAULTS=fault).returncode != 0
    assert_lives(workload, digests)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("cuMemHostRegister:*:2", "cuMemHostRegister failed: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuMemcpyDtoHAsync:*:1:1", "cuMemcpyDtoHAsync failed: CUDA_ERROR_INVALID_VALUE"),
        ("cuCtxSynchronize:*:1", "the GPU reports CUDA_ERROR_INVALID_VALUE"),
        ("cuMemUnmap:*:1:1", "memory of the GPU cannot be given back: CUDA_ERROR_INVALID_VALUE"),
    ],
)
def test_what_cannot_be_put_aside_is_carried_by_the_driver(fault, says, workload, criu):
    workload.start(mib=16, preload=criu.staging, GPUCKPT_FAKE_FAULTS=fault)
    digests = workload.digests()
    dump = criu.dump(GPUCKPT_FAKE_FAULTS="")
    assert dump.returncode == 0, dump.log
    assert says in dump.log
    assert staged_files(criu.images) == []
    [pid] = workload.pids
    assert sum(end - start for start, end in ranges_of(criu.images, pid)) == 16 * MIB
    assert criu.restore().returncode == 0
    assert_lives(workload, digests)


def test_a_full_image_folder_leaves_the_program_as_it_was(workload, criu):
    workload.start(mib=16, preload=criu.staging)
    digests = workload.digests()
    criu.images.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", criu.images], check=True)
    try:
        dump = criu.dump()
        assert dump.returncode != 0, "nor does the driver's share fit"
        assert "the staging file cannot be written: No space left on device" in dump.log
        assert_lives(workload, digests)
    finally:
        subprocess.run(["umount", "-l", criu.images], check=True)


def test_no_limit_is_no_limit_of_nothing(workload, criu):
    workload.start(mib=16, preload=criu.staging)
    dump = criu.dump("--timeout", "0", CRIU_CUDA_TIMEOUT_S="0")
    assert dump.returncode == 0
    assert notes(dump.named("gpu-stage")) == {"ok"}


def test_it_can_be_switched_off(workload, criu):
    workload.start(mib=16, preload=criu.staging)
    digests = workload.digests()
    dump = criu.dump(CRIU_CUDA_STAGING="0")
    assert dump.returncode == 0
    assert staged_files(criu.images) == [] == dump.named("gpu-stage")
    assert criu.restore().returncode == 0
    assert_lives(workload, digests)


# --- a file that is not the one ---


def assert_refused(criu, workload, says: str) -> None:
    restore = criu.restore()
    assert restore.returncode != 0
    assert says in restore.log
    workload.assert_gone()


@pytest.mark.parametrize("offset", [HEADER, HEADER + 5 * MIB + 77, HEADER + 16 * MIB - 1])
def test_a_damaged_file_is_refused(offset, staged, workload, criu):
    damage(staged_files(criu.images)[0], offset)
    assert_refused(criu, workload, "the staging file is damaged at offset")


def test_a_truncated_file_is_refused(staged, workload, criu):
    [file] = staged_files(criu.images)
    os.truncate(file, HEADER + 15 * MIB)
    assert_refused(criu, workload, f"the staging file has {HEADER + 15 * MIB} bytes instead of {HEADER + 16 * MIB}")


def test_a_missing_file_is_refused(staged, workload, criu):
    staged_files(criu.images)[0].unlink()
    assert_refused(criu, workload, "its staging file is missing")


def test_the_file_of_another_checkpoint_is_refused(staged, workload, criu, tmp_path):
    first = criu.images
    assert criu.restore().returncode == 0
    criu.images = tmp_path / "another"
    assert criu.dump().returncode == 0
    shutil.copy(staged_files(first)[0], staged_files(criu.images)[0])
    assert_refused(criu, workload, "the staging file belongs to another checkpoint")


def test_memory_that_cannot_be_made_anew_ends_the_program(staged, workload, criu):
    # what others hold is part of the fake GPU's memory: no room for these 16 MiB
    (workload.gpu / f"memory.{os.getpid()}.0").write_bytes(b"")
    os.truncate(workload.gpu / f"memory.{os.getpid()}.0", 8190 * MIB)
    assert_refused(criu, workload, "memory of the GPU cannot be made anew: CUDA_ERROR_OUT_OF_MEMORY")


# --- parked, without a checkpoint ---


def park(workload, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [workload.tools.folder / "sanitized/gpuckpt-park", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_parked_program_gives_its_memory_to_others_and_wakes(workload, criu, tmp_path):
    workload.start(mib=16, preload=criu.staging)
    digests = workload.digests()
    pid = ("--pid", workload.pids[0])
    assert park(workload, *pid, "--state").stdout == f"pid={pid[1]} active mib=16 zeros_mib=0 dropped_mib=0\n"
    assert park(workload, *pid, "--park", tmp_path / "parked").stdout.startswith(f"pid={pid[1]} parked mib=16")
    assert memory_files(workload) == []
    again = park(workload, *pid, "--park", tmp_path / "parked")
    assert (again.returncode, again.stderr) == (1, f"gpuckpt-park: {tmp_path}/parked: File exists\n")
    assert park(workload, *pid, "--park", tmp_path / "more").stderr == "gpuckpt-park: refused: it is staged already\n"
    assert park(workload, *pid, "--activate", tmp_path / "parked").returncode == 0
    assert_lives(workload, digests)


@pytest.mark.parametrize("switch", ["0", "1"])
def test_a_parked_program_is_not_checkpointed(switch, workload, criu, tmp_path):
    """Its memory is in a file of its own, which the image folder would not have."""
    workload.start(mib=16, preload=criu.staging)
    digests = workload.digests()
    pid = ("--pid", workload.pids[0])
    assert park(workload, *pid, "--park", tmp_path / "parked").returncode == 0
    dump = criu.dump(CRIU_CUDA_STAGING=switch)
    assert dump.returncode != 0
    assert "its GPU memory is parked" in dump.log
    assert park(workload, *pid, "--activate", tmp_path / "parked").returncode == 0
    assert_lives(workload, digests)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "--pid, and one of --park, --activate and --state, are needed"),
        (["--pid", "x", "--state"], 2, "this is no pid: x"),
        (["--pid", "1", "--state", "--park", "f"], 2, "one thing at a time"),
        (["--pid", "1", "--timeout", "0", "--state"], 2, "this is no number of seconds: 0"),
        (["--pid", str(os.getpid()), "--state"], 1, "no staging library in this program"),
    ],
)
def test_park_says_what_is_wrong(arguments, status, says, workload):
    done = park(workload, *arguments)
    assert (done.returncode, says in done.stderr) == (status, True)
