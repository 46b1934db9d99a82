# SPDX-License-Identifier: GPL-3.0-or-later
"""Threads that use GPU memory all the time, checkpointed in the middle of it, with real CRIU and a fake driver.

staging_workload.c checks each content and each result itself, and ends with a message where one is wrong.
"""

from pathlib import Path

import pytest


@pytest.fixture
def workload(busy):
    """What CRIU is run on here."""
    return busy


def assert_staged(dump) -> None:
    assert dump.returncode == 0, dump.log
    assert [span.note for span in dump.named("gpu-stage")] == ["ok"], dump.log


@pytest.mark.parametrize(
    ("options", "gpus"),
    [(("--seed", "1"), 1), (("--seed", "2", "--proc-address"), 1), (("--seed", "3", "--threads", "6"), 2)],
    ids=["dlsym", "proc-address", "two-gpus"],
)
def test_threads_go_on_where_they_were(options, gpus, workload, criu):
    workload.begin(*options, preload=criu.staging, gpus=gpus)
    assert_staged(criu.dump())
    for _ in range(2):
        restore = criu.restore()
        assert restore.returncode == 0, restore.log
        workload.goes_on()
        workload.stop()


@pytest.mark.parametrize("gpus", [1, 2])
def test_all_memory_is_the_same_at_the_same_addresses(gpus, workload, criu):
    workload.begin("--seed", "4", preload=criu.staging, gpus=gpus)
    workload.tell("pause")
    before = workload.tell("digest")
    assert int(before["mib"]) > 0
    assert_staged(criu.dump())
    for _ in range(2):
        assert criu.restore().returncode == 0
        assert workload.tell("digest") == before
        workload.tell("go")
        workload.goes_on()
        workload.stop()


def test_work_of_the_gpu_takes_time(workload, criu):
    workload.begin("--seed", "5", preload=criu.staging, GPUCKPT_FAKE_WORK_MS="20")
    assert_staged(criu.dump())
    assert criu.restore().returncode == 0
    workload.goes_on()


def test_the_driver_alone_does_the_same(workload, criu):
    """So what fails above is the library's doing, and not that of the fake or of the program."""
    workload.begin("--seed", "6", gpus=2)
    for _ in range(2):
        dump = criu.dump()
        assert (dump.returncode, dump.named("gpu-stage")) == (0, [])
        assert criu.restore().returncode == 0
        workload.goes_on()


def test_a_program_that_lives_on_is_dumped_again_and_again(workload, criu, tmp_path: Path):
    workload.begin("--seed", "7", preload=criu.staging)
    for number in range(4):
        criu.images = tmp_path / f"images-{number}"
        assert_staged(criu.dump("--leave-running"))
        workload.goes_on()


def test_memory_of_small_allocations_alone_is_the_drivers(workload, criu):
    workload.begin("--seed", "8", preload=criu.staging, GPUCKPT_STAGING_MIN_MIB="64")
    dump = criu.dump()
    assert (dump.returncode, dump.named("gpu-stage")) == (0, [])
    assert criu.restore().returncode == 0
    workload.goes_on()
