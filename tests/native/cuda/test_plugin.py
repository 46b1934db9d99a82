# SPDX-License-Identifier: GPL-3.0-or-later
"""The CUDA plugin of the patched CRIU on the driver API: what it does, and that its errors are errors."""

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from criu_harness import wait_until
from cuda_harness import assert_lives, memory_files, ranges_of, state

MIB = 1 << 20
DUMP_STEPS = ("cuda-lock", "cuda-checkpoint")
RESTORE_STEPS = ("cuda-restore", "cuda-unlock")


def act(workload, action: str, pid: int) -> None:
    subprocess.run(
        [workload.tools.cuda_checkpoint, "--action", action, "--pid", str(pid)],
        env={**os.environ, **workload.environment},
        check=True,
    )


def overlap(spans) -> bool:
    return all(a.start < b.end and b.start < a.end for a, b in itertools.combinations(spans, 2))


def command_folder(tmp_path: Path, body: str) -> Path:
    """A folder for PATH whose cuda-checkpoint is a shell script."""
    folder = tmp_path / "commands"
    folder.mkdir()
    script = folder / "cuda-checkpoint"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return folder


def real_command(criu, tools) -> str:
    return f'GPUCKPT_LIBCUDA={tools.driver} exec {criu.home}/bin/cuda-checkpoint "$@"'


def search_path(folder: Path) -> str:
    return f"{folder}:/usr/sbin:/usr/bin:/sbin:/bin"


# --- what works ---


@pytest.mark.parametrize("backend", ["auto", "driver-api", "cuda-checkpoint"])
@pytest.mark.parametrize("mapped", ["0", "1"])
def test_a_tree_survives(workload, criu, backend, mapped):
    workload.start(processes=3, mib=16)
    digests, counter = workload.digests(), int(workload.ask(0)["counter"])

    dump = criu.dump(CRIU_CUDA_BACKEND=backend)
    assert dump.returncode == 0, dump.log
    assert memory_files(workload) == []  # the GPU is free
    assert {span.name for span in dump.spans} >= set(DUMP_STEPS)
    for pid in workload.pids:
        assert sum(end - start for start, end in ranges_of(criu.images, pid)) == 16 * MIB
        assert [span.bytes for span in dump.named("cuda-checkpoint") if span.pid == pid] == [16 * MIB]

    restore = criu.restore(CRIU_CUDA_BACKEND=backend, CRIU_MAPPED_RESTORE=mapped, CRIU_MAPPED_SCOPE="driver")
    assert restore.returncode == 0, restore.log
    for step in RESTORE_STEPS:
        assert sorted(span.pid for span in restore.named(step)) == sorted(workload.pids)
    assert {span.note for span in dump.spans + restore.spans if span.name.startswith("cuda-")} == {"ok"}
    assert_lives(workload, digests)
    assert int(workload.ask(0)["counter"]) > counter


def test_parked_data_is_read_into_huge_pages_that_go_with_it(workload, criu):
    workload.start(mib=16)
    digests = workload.digests()
    assert criu.dump(CRIU_CUDA_BACKEND="driver-api").returncode == 0
    restore = criu.restore(CRIU_CUDA_BACKEND="driver-api", CRIU_DRIVER_HUGE_PAGES="1", CRIU_RESTORE_THREADS="4")
    assert restore.returncode == 0
    [pid] = workload.pids
    assert f"gpuckpt: huge pages pid={pid} bytes={16 * MIB}\n" in restore.log
    assert_lives(workload, digests)
    assert "VmFlags: rd wr" in (smaps := Path(f"/proc/{pid}/smaps").read_text())
    assert not [line for line in smaps.splitlines() if line.startswith("VmFlags:") and " hg" in line]


def test_the_driver_api_starts_no_command(workload, criu, tmp_path):
    workload.start()
    witness = tmp_path / "was-started"
    folder = command_folder(tmp_path, f"touch {witness}; exit 1")
    path = search_path(folder)
    assert criu.dump(PATH=path).returncode == 0
    assert criu.restore(PATH=path).returncode == 0
    assert not witness.exists()


def test_processes_of_a_tree_are_handled_at_the_same_time(workload, criu):
    workload.start(processes=3)
    slow = "lock:*:delay=300 checkpoint:*:delay=300 restore:*:delay=300 unlock:*:delay=300"
    dump = criu.dump(GPUCKPT_FAKE_FAULTS=slow)
    restore = criu.restore(GPUCKPT_FAKE_FAULTS=slow)
    assert (dump.returncode, restore.returncode) == (0, 0)
    for outcome, steps in ((dump, DUMP_STEPS), (restore, RESTORE_STEPS)):
        for step in steps:
            assert len(outcome.named(step)) == 3
            assert overlap(outcome.named(step)), outcome.named(step)
    # All are locked before the first is checkpointed; all are restored before the first runs.
    assert max(s.end for s in dump.named("cuda-lock")) <= min(s.start for s in dump.named("cuda-checkpoint"))
    assert max(s.end for s in restore.named("cuda-restore")) <= min(s.start for s in restore.named("cuda-unlock"))


def test_cuda_checkpoint_handles_one_process_after_another(workload, criu):
    """The opposite of the test before: overlap() can tell."""
    workload.start(processes=3)
    dump = criu.dump(CRIU_CUDA_BACKEND="cuda-checkpoint", GPUCKPT_FAKE_FAULTS="checkpoint:*:delay=100")
    assert dump.returncode == 0
    assert not overlap(dump.named("cuda-checkpoint"))


def test_a_tree_left_running_goes_on(workload, criu):
    workload.start(processes=2)
    digests = workload.digests()
    dump = criu.dump("--leave-running")
    assert dump.returncode == 0, dump.log
    assert_lives(workload, digests)


@pytest.mark.parametrize("before", ["locked", "checkpointed"])
def test_a_process_goes_back_to_the_state_it_was_found_in(workload, criu, before):
    workload.start()
    digests = workload.digests()
    act(workload, "lock", workload.pids[0])
    if before == "checkpointed":
        act(workload, "checkpoint", workload.pids[0])
    assert criu.dump("--leave-running").returncode == 0
    assert state(workload, workload.pids[0]) == before

    assert criu.dump().returncode == 0
    assert criu.restore().returncode == 0
    assert_lives(workload, digests)  # a restore always ends in running


def test_a_process_without_a_gpu_never_meets_the_driver(workload, criu):
    sleeper = subprocess.Popen(
        ["sleep", "1000"],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    workload.pids = [sleeper.pid]
    dump = criu.dump(GPUCKPT_LIBCUDA="/nonexistent/libcuda.so.1", CRIU_CUDA_BACKEND="driver-api")
    assert dump.returncode == 0, dump.log
    assert dump.spans == []
    assert criu.restore(GPUCKPT_LIBCUDA="/nonexistent/libcuda.so.1", CRIU_CUDA_BACKEND="driver-api").returncode == 0


def test_a_gpu_that_nothing_keeps_initialised(workload, criu):
    """Persistence mode off: the driver asks for cuInit in the process that restores."""
    workload.start()
    digests = workload.digests()
    assert criu.dump().returncode == 0
    assert criu.restore(GPUCKPT_FAKE_NEEDS_INIT="1").returncode == 0
    assert_lives(workload, digests)


def test_stock_criu_with_our_command(workload, stock_criu):
    workload.start(processes=2)
    digests = workload.digests()
    dump = stock_criu.dump()
    assert dump.returncode == 0, dump.log
    assert memory_files(workload) == []
    assert stock_criu.restore().returncode == 0
    assert_lives(workload, digests)


def test_images_of_stock_criu_are_restored(workload, stock_criu, criu):
    """They hold no cuda-ranges file: the driver alone tells which processes are meant."""
    workload.start(processes=2)
    digests = workload.digests()
    assert stock_criu.dump().returncode == 0
    assert criu.restore().returncode == 0
    assert_lives(workload, digests)


# --- a failed dump: rc is not 0, and the server goes on serving ---


@pytest.mark.parametrize("step", ["lock", "checkpoint"])
@pytest.mark.parametrize("failing", [0, 2])
def test_one_of_three_fails_at_the_dump(workload, criu, step, failing):
    workload.start(processes=3)
    digests = workload.digests()
    dump = criu.dump(GPUCKPT_FAKE_FAULTS=f"{step}:{workload.pids[failing]}:600")
    assert dump.returncode != 0
    pid = workload.pids[failing]
    title = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
    assert f"CUDA {step} of pid {pid} ({title[:63]}) failed: CUDA_ERROR_NOT_READY" in dump.log
    assert_lives(workload, digests)


def test_a_lock_that_hangs_ends_with_the_limit(workload, criu):
    workload.start(processes=2)
    hanging, other = workload.pids
    dump = criu.dump(CRIU_CUDA_TIMEOUT_S="1", GPUCKPT_FAKE_FAULTS=f"lock:{hanging}:delay=30000")
    assert dump.returncode != 0
    assert [span.note for span in dump.named("cuda-lock") if span.pid == hanging] == ["timeout"]
    assert state(workload, other) == "running"
    assert workload.ask(1)["digest"]


def test_a_checkpoint_that_hangs_ends_with_the_limit(workload, criu):
    workload.start(processes=2)
    hanging, other = workload.pids
    dump = criu.dump(CRIU_CUDA_TIMEOUT_S="1", GPUCKPT_FAKE_FAULTS=f"checkpoint:{hanging}:delay=30000")
    assert dump.returncode != 0
    assert [span.note for span in dump.named("cuda-checkpoint") if span.pid == hanging] == ["timeout"]
    assert f"pid {hanging} stays in CUDA state" in dump.log
    assert state(workload, other) == "running"
    assert workload.ask(1)["digest"]


def test_a_refusing_post_dump_script_keeps_the_tree_running(workload, criu, tmp_path):
    workload.start(processes=2)
    digests = workload.digests()
    script = tmp_path / "action.sh"
    script.write_text('#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]\n')
    script.chmod(0o755)
    assert criu.dump("--action-script", str(script)).returncode != 0
    assert_lives(workload, digests)


def test_a_process_with_a_gpu_but_no_cuda_state_is_refused(workload, criu):
    holder = subprocess.Popen(
        ["sleep", "1000"],
        start_new_session=True,
        stdin=workload.device.open(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    workload.pids = [holder.pid]
    dump = criu.dump()
    assert dump.returncode != 0
    assert f"pid {holder.pid} has {workload.device} open, but no CUDA state that could be saved" in dump.log


@pytest.mark.parametrize("backend", ["auto", "driver-api", "cuda-checkpoint"])
def test_a_dump_without_any_way_to_the_driver_is_refused(workload, criu, backend, tmp_path):
    workload.start()
    digests = workload.digests()
    (tmp_path / "empty").mkdir()
    dump = criu.dump(
        CRIU_CUDA_BACKEND=backend,
        GPUCKPT_LIBCUDA="/nonexistent/libcuda.so.1",
        PATH=search_path(tmp_path / "empty"),
    )
    assert dump.returncode != 0
    assert f"pid {workload.pids[0]} has {workload.device} open" in dump.log
    assert_lives(workload, digests)


# --- fallback to cuda-checkpoint ---


@pytest.mark.parametrize("driver", ["missing", "old"])
def test_auto_falls_back_to_cuda_checkpoint(workload, criu, tools, tmp_path, driver):
    workload.start(processes=2)
    digests = workload.digests()
    folder = command_folder(tmp_path, real_command(criu, tools))
    library = str(tools.old_driver) if driver == "old" else "/nonexistent/libcuda.so.1"
    environment = {"GPUCKPT_LIBCUDA": library, "PATH": search_path(folder)}
    dump = criu.dump(**environment)
    assert dump.returncode == 0, dump.log
    assert "falling back to cuda-checkpoint" in dump.log
    assert ("needs driver 570" in dump.log) == (driver == "old")
    assert len(dump.named("cuda-checkpoint")) == 2
    assert criu.restore(**environment).returncode == 0
    assert_lives(workload, digests)


def test_driver_api_does_not_fall_back(workload, criu, tools):
    workload.start()
    digests = workload.digests()
    dump = criu.dump(CRIU_CUDA_BACKEND="driver-api", GPUCKPT_LIBCUDA=str(tools.old_driver))
    assert dump.returncode != 0
    assert "needs driver 570 or newer" in dump.log
    assert_lives(workload, digests)


def test_a_command_that_dies_is_not_the_answer_no(workload, criu, tools, tmp_path):
    workload.start()
    digests = workload.digests()
    dies = 'case "$*" in *get-restore-tid*) kill -9 $$;; esac\n'
    path = search_path(command_folder(tmp_path, dies + real_command(criu, tools)))
    dump = criu.dump(CRIU_CUDA_BACKEND="cuda-checkpoint", PATH=path)
    assert dump.returncode != 0
    assert_lives(workload, digests)

    assert criu.dump().returncode == 0
    assert criu.restore(CRIU_CUDA_BACKEND="cuda-checkpoint", PATH=path).returncode != 0
    workload.assert_gone()


# --- a failed restore: rc is not 0, and nothing is left behind ---


@pytest.mark.parametrize("backend", ["driver-api", "cuda-checkpoint"])
@pytest.mark.parametrize("step", ["restore", "unlock"])
@pytest.mark.parametrize("failing", [0, 2])
def test_one_of_three_fails_at_the_restore(workload, criu, backend, step, failing):
    workload.start(processes=3)
    assert criu.dump().returncode == 0
    faults = f"{step}:{workload.pids[failing]}:304"
    restore = criu.restore(CRIU_CUDA_BACKEND=backend, GPUCKPT_FAKE_FAULTS=faults)
    assert restore.returncode != 0
    if (backend, step) == ("driver-api", "restore"):
        assert not restore.named("cuda-unlock"), "no process runs while another of its server is missing"
    workload.assert_gone()


def test_stock_criu_hides_the_same_failure(workload, stock_criu):
    """Why the patch is there; when upstream fails here too, 0201 can go."""
    workload.start()
    assert stock_criu.dump().returncode == 0
    restore = stock_criu.restore(GPUCKPT_FAKE_FAULTS="restore:*:304")
    assert restore.returncode == 0
    assert state(workload, workload.pids[0]) == "checkpointed"


def test_processes_that_wait_for_each_other_are_restored(workload, criu):
    workload.start(processes=3)
    digests = workload.digests()
    assert criu.dump(GPUCKPT_FAKE_FAULTS="checkpoint:*:meet=3").returncode == 0
    restore = criu.restore(GPUCKPT_FAKE_FAULTS="restore:*:meet=3")
    assert restore.returncode == 0, restore.log
    assert_lives(workload, digests)


def test_the_limit_is_one_for_all_processes(workload, criu):
    workload.start(processes=3)
    assert criu.dump().returncode == 0
    restore = criu.restore(CRIU_CUDA_TIMEOUT_S="1", GPUCKPT_FAKE_FAULTS="restore:*:delay=30000")
    assert restore.returncode != 0
    spans = restore.named("cuda-restore")
    assert [span.note for span in spans] == ["timeout"] * 3
    assert overlap(spans), "they wait at the same time"
    assert not restore.named("cuda-unlock")
    workload.assert_gone()


def test_a_restore_that_hangs_ends_with_the_limit(workload, criu):
    workload.start(processes=2)
    assert criu.dump().returncode == 0
    restore = criu.restore(CRIU_CUDA_TIMEOUT_S="1", GPUCKPT_FAKE_FAULTS=f"restore:{workload.pids[1]}:delay=30000")
    assert restore.returncode != 0
    assert [span.note for span in restore.named("cuda-restore") if span.pid == workload.pids[1]] == ["timeout"]
    workload.assert_gone()


@pytest.mark.parametrize("answer", [3, 801])
def test_a_process_that_the_driver_forgot(workload, criu, answer):
    workload.start(processes=2)
    assert criu.dump().returncode == 0
    restore = criu.restore(GPUCKPT_FAKE_FAULTS=f"tid:{workload.pids[1]}:{answer}")
    assert restore.returncode != 0
    assert f"pid {workload.pids[1]} was a CUDA process at the dump" in restore.log
    workload.assert_gone()


def test_a_command_that_forgot_a_process(workload, criu):
    workload.start()
    assert criu.dump().returncode == 0
    restore = criu.restore(CRIU_CUDA_BACKEND="cuda-checkpoint", GPUCKPT_FAKE_FAULTS="tid:*:3")
    assert restore.returncode != 0
    workload.assert_gone()


@pytest.mark.parametrize("backend", ["auto", "driver-api", "cuda-checkpoint"])
def test_a_restore_without_any_way_to_the_driver_fails(workload, criu, backend, tmp_path):
    workload.start()
    assert criu.dump().returncode == 0
    (tmp_path / "empty").mkdir()
    restore = criu.restore(
        CRIU_CUDA_BACKEND=backend,
        GPUCKPT_LIBCUDA="/nonexistent/libcuda.so.1",
        PATH=search_path(tmp_path / "empty"),
    )
    assert restore.returncode != 0
    workload.assert_gone()


@pytest.mark.skipif(Path("/proc/driver/nvidia/gpus").is_dir(), reason="this machine has a GPU")
def test_a_restore_on_a_node_without_a_gpu_fails(workload, criu):
    workload.start()
    assert criu.dump().returncode == 0
    restore = criu.restore(CRIU_FAULT="")
    assert restore.returncode != 0
    assert "the images hold CUDA state, but this node has no GPU" in restore.log


# --- switches ---


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CRIU_CUDA_BACKEND", "driver_api", "none of auto, driver-api, cuda-checkpoint"),
        ("CRIU_CUDA_TIMEOUT_S", "1m", "not a number of seconds"),
        ("CRIU_CUDA_TIMEOUT_S", "-1", "not a number of seconds"),
        ("CRIU_CUDA_POOL_WAIT_S", "soon", "not a number of seconds"),
        ("CRIU_CUDA_CONTEXT_POOL", "yes", "neither 0 nor 1"),
        ("CRIU_CUDA_POOL_CONTEXTS", "1x", "neither 0 nor 1"),
        ("CRIU_CUDA_DEVICE_MAP", "0=1", "not of the form OLDUUID=NEWUUID"),
    ],
)
def test_a_wrong_switch_is_named(workload, criu, variable, value, message):
    workload.start()
    digests = workload.digests()
    dump = criu.dump(**{variable: value})
    assert dump.returncode != 0
    assert message in dump.log
    assert_lives(workload, digests)


GPU = "GPU-11111111-1111-1111-1111-111111111111"
OTHER_GPU = "22222222-2222-2222-2222-222222222222"


def test_gpus_are_renumbered(workload, criu):
    workload.start()
    digests = workload.digests()
    assert criu.dump().returncode == 0
    wrong = criu.restore(CRIU_CUDA_DEVICE_MAP=f"{OTHER_GPU}={GPU}")
    assert wrong.returncode != 0
    assert "CUDA_ERROR_INVALID_VALUE" in wrong.log
    workload.stop()
    assert criu.restore(CRIU_CUDA_DEVICE_MAP=f"{GPU}={OTHER_GPU}").returncode == 0
    assert_lives(workload, digests)


def test_renumbering_needs_a_new_driver(workload, criu):
    workload.start()
    assert criu.dump().returncode == 0
    restore = criu.restore(CRIU_CUDA_DEVICE_MAP=f"{GPU}={OTHER_GPU}", GPUCKPT_FAKE_VERSION="12080")
    assert restore.returncode != 0
    assert "a device map needs driver 580 or newer (CUDA 13.0), this one has CUDA 12.8" in restore.log


# --- context pool ---


def own_contexts(workload) -> list[str]:
    return sorted(f"context.{pid}" for pid in workload.pids)


@pytest.mark.parametrize(
    ("switches", "contexts", "note"), [({}, 0, "devices"), ({"CRIU_CUDA_POOL_CONTEXTS": "1"}, 1, "contexts")]
)
def test_the_pool_is_ready_and_let_go(workload, criu, switches, contexts, note):
    workload.start(processes=2)
    digests = workload.digests()
    assert criu.dump().returncode == 0
    restore = criu.restore(CRIU_CUDA_CONTEXT_POOL="1", **switches)
    assert restore.returncode == 0, restore.log
    for line in ("context pool started", f"context pool ready, 1 devices, {contexts} contexts", "context pool let go"):
        assert f"gpuckpt: {line}" in restore.log
    assert [span.note for span in restore.named("pool-init")] == [note]
    assert [span.note for span in restore.named("pool-wait")] == ["ok"]
    assert restore.named("pool-wait")[0].end <= restore.named("cuda-restore")[0].start
    wait_until(lambda: workload.contexts() == own_contexts(workload), "the end of the pool's contexts")
    assert_lives(workload, digests)


@pytest.mark.parametrize(
    ("faults", "note", "message"),
    [
        ("init:*:100", "failed", "the driver cannot be initialised: CUDA_ERROR_NO_DEVICE"),
        ("retain:*:2", "failed", "no context on GPU 0: CUDA_ERROR_OUT_OF_MEMORY"),
        ("init:*:delay=30000", "timeout", "not ready after 1 s"),
    ],
)
def test_a_failing_pool_never_fails_a_restore(workload, criu, faults, note, message):
    workload.start()
    digests = workload.digests()
    assert criu.dump().returncode == 0
    switches = {"CRIU_CUDA_CONTEXT_POOL": "1", "CRIU_CUDA_POOL_CONTEXTS": "1", "CRIU_CUDA_POOL_WAIT_S": "1"}
    restore = criu.restore(**switches, GPUCKPT_FAKE_FAULTS=faults)
    assert restore.returncode == 0, restore.log
    assert [span.note for span in restore.named("pool-wait")] == [note]
    assert message in restore.log
    assert_lives(workload, digests)


def test_a_missing_pool_never_fails_a_restore(workload, criu, tmp_path):
    workload.start()
    digests = workload.digests()
    assert criu.dump().returncode == 0
    (tmp_path / "empty").mkdir()
    restore = criu.restore(CRIU_CUDA_CONTEXT_POOL="1", PATH=search_path(tmp_path / "empty"))
    assert restore.returncode == 0, restore.log
    assert "cannot run gpuckpt-pool: No such file or directory" in restore.log
    assert_lives(workload, digests)


def test_the_pool_gives_way_when_gpu_memory_is_short(workload, criu):
    # Room for the process's own context (512 MiB) and data, but not for a second context as well.
    workload.start(mib=16, GPUCKPT_FAKE_TOTAL_MB="800")
    digests = workload.digests()
    assert criu.dump().returncode == 0
    restore = criu.restore(CRIU_CUDA_CONTEXT_POOL="1", CRIU_CUDA_POOL_CONTEXTS="1")
    assert restore.returncode == 0, restore.log
    assert [span.note for span in restore.named("cuda-restore")] == ["CUDA_ERROR_OUT_OF_MEMORY", "ok"]
    assert_lives(workload, digests)


def test_the_pool_ends_when_the_restore_fails(workload, criu):
    workload.start()
    assert criu.dump().returncode == 0
    shutil.copytree(criu.images, criu.images.with_name("broken"))
    next(criu.images.glob("core-*.img")).unlink()
    assert criu.restore(CRIU_CUDA_CONTEXT_POOL="1", CRIU_CUDA_POOL_CONTEXTS="1").returncode != 0
    assert pools(workload) == []
    assert workload.contexts() == []


def pools(workload) -> list[int]:
    """Pools of this test, by the folder of the fake GPU in their environment."""
    mine = f"GPUCKPT_FAKE_DIR={workload.gpu}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "comm").read_text() == "gpuckpt-pool\n" and mine in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_twenty_restores_leak_nothing(workload, criu):
    workload.start(mib=4)
    digests = workload.digests()
    assert criu.dump().returncode == 0
    seen = set()
    for _ in range(20):
        restore = criu.restore(CRIU_CUDA_CONTEXT_POOL="1", CRIU_CUDA_POOL_CONTEXTS="1")
        assert restore.returncode == 0, restore.log
        assert workload.digests() == digests
        pid = workload.pids[0]
        files = sorted(os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir())
        # Anonymous memory is the workload's own and varies with its allocator; nobody else's files may be mapped.
        mappings = [line.split(maxsplit=5)[5:] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
        names = frozenset(name[0].strip() for name in mappings if name and not name[0].startswith("["))
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        wait_until(lambda: pools(workload) == [], "the end of the pool")
        assert workload.contexts() == own_contexts(workload)
        seen.add((len(files), names, threads, workload.ask(0)["free_mib"]))
        workload.stop()
    assert len(seen) == 1, seen
