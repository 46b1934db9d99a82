# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints that keep only what was written since the process was restored by mapping."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from criu_harness import MIB, Target, largest_mapping, own_bytes

MAPPED = {"CRIU_MAPPED_RESTORE": "1"}
DELTA = {"CRIU_MAPPED_REDUMP": "delta"}
HEAP_MIB = 64


@pytest.fixture
def target(programs, tmp_path, targets) -> Target:
    report = tmp_path / "report"
    target = Target([str(programs / "heap"), "private", str(HEAP_MIB), str(report)], [report])
    targets.append(target)
    return target.start()


@pytest.fixture(params=["exec", "noexec"])
def mounted(request, store: Path) -> Path:
    """The store, once as a plain tmpfs and once mounted as checkpoint stores are."""
    subprocess.run(["mount", "-o", f"remount,{request.param}", store], check=True)
    return store


@pytest.fixture
def delta(mounted: Path, stock_build, patched_build, target) -> tuple[Path, list[list[str]]]:
    """A delta checkpoint in the store's folder `delta`, whose base is the checkpoint in `full`."""
    expected = target.ask()
    stock_build.dump(target, mounted / "full")
    patched_build.restored(mounted / "full", environment=MAPPED)
    patched_build.dump(target, mounted / "delta", environment={**MAPPED, **DELTA})
    return mounted / "delta", expected


def base_of(images: Path) -> Path:
    (base,) = images.glob("mapped-base-*.img")
    return base


def test_delta_is_small_and_keeps_its_base(delta, mounted, patched_build, target):
    images, expected = delta
    assert own_bytes(images) < 4 * MIB
    assert base_of(images).samefile(mounted / "full/pages-1.img")
    shutil.rmtree(mounted / "full")
    patched_build.restored(images, environment=MAPPED)
    assert target.ask() == expected


def test_delta_restores_with_mapping_off(delta, patched_build, target):
    images, expected = delta
    patched_build.restored(images)
    assert target.ask() == expected


def test_delta_restores_with_threads(delta, patched_build, target):
    images, expected = delta
    patched_build.restored(images, environment={"CRIU_RESTORE_THREADS": "4"})
    assert target.ask() == expected


def test_stock_refuses_a_delta(delta, stock_build):
    outcome = stock_build.restore(delta[0])
    assert outcome.returncode != 0
    assert "Not supported images version" in outcome.log


def test_missing_base_is_refused(delta, patched_build):
    base_of(delta[0]).unlink()
    outcome = patched_build.restore(delta[0], environment=MAPPED)
    assert outcome.returncode != 0
    assert "of this delta checkpoint is missing" in outcome.log


def rewrite_a_page(base: Path) -> None:
    with base.open("r+b") as stream:
        stream.seek(8 * MIB)
        stream.write(b"another page")


def rewrite_all_and_keep_the_time(base: Path) -> None:
    times = base.stat()
    base.write_bytes(b"\xa5" * times.st_size)
    os.utime(base, ns=(times.st_atime_ns, times.st_mtime_ns))


def truncate(base: Path) -> None:
    times = base.stat()
    os.truncate(base, times.st_size // 2)
    os.utime(base, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite_a_page, rewrite_all_and_keep_the_time, truncate])
def test_changed_base_is_refused(change, delta, patched_build):
    change(base_of(delta[0]))
    outcome = patched_build.restore(delta[0], environment=MAPPED)
    assert outcome.returncode != 0
    assert "of this delta checkpoint has changed" in outcome.log


def test_broken_list_is_refused(delta, patched_build, target):
    images, _ = delta
    (images / f"mapped-base-{target.pid}.txt").write_text("range 1000 2000 0 0\n")
    outcome = patched_build.restore(images, environment=MAPPED)
    assert outcome.returncode != 0
    assert "The list of base images holds a wrong line: range 1000 2000 0 0" in outcome.log


def test_delta_with_auto_dedup_is_refused(delta, patched_build):
    outcome = patched_build.restore(delta[0], "--auto-dedup", environment=MAPPED)
    assert outcome.returncode != 0
    assert "A delta checkpoint can't be restored with auto-dedup" in outcome.log


def scribble(pid: int, start: int, end: int, seed: int) -> None:
    """Changes bytes at 60 random places, as the process itself would."""
    places = random.Random(seed)
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for _ in range(60):
            os.pwrite(memory.fileno(), places.randbytes(16), places.randrange(start, end - 16))


@pytest.mark.parametrize(
    "modes",
    [["delta"] * 3, ["standalone"] * 3, ["delta", "standalone", "delta"], ["standalone", "delta", "standalone"]],
    ids="-".join,
)
def test_generations(modes, mounted, stock_build, patched_build, target):
    expected = target.ask()
    heap = largest_mapping(target.pid)
    stock_build.dump(target, mounted / "0")
    for generation, mode in enumerate(modes, 1):
        patched_build.restored(mounted / str(generation - 1), environment=MAPPED)
        assert target.ask() == expected
        scribble(target.pid, *heap, seed=generation)
        assert target.ask() != expected
        expected = target.ask()
        images = mounted / str(generation)
        patched_build.dump(target, images, environment={**MAPPED, "CRIU_MAPPED_REDUMP": mode})
        shutil.rmtree(mounted / str(generation - 1))
        assert (own_bytes(images) < HEAP_MIB * MIB // 4) == (mode == "delta")
    patched_build.restored(mounted / str(len(modes)), environment=MAPPED)
    assert target.ask() == expected


@pytest.mark.parametrize("modes", [["delta"] * 3, ["standalone"] * 3, ["delta", "standalone", "delta"]], ids="-".join)
def test_generations_in_one_folder(modes, mounted, stock_build, patched_build, target):
    """Each checkpoint replaces the one that the process is mapped from."""
    expected = target.ask()
    heap = largest_mapping(target.pid)
    images = mounted / "images"
    stock_build.dump(target, images)
    for generation, mode in enumerate(modes, 1):
        patched_build.restored(images, environment=MAPPED)
        scribble(target.pid, *heap, seed=generation)
        expected = target.ask()
        environment = {**MAPPED, "CRIU_MAPPED_REDUMP": mode}
        patched_build.dump(target, images, "--leave-running", environment=environment)
        assert target.ask() == expected, "it lives on in memory that the checkpoint has replaced"
        patched_build.dump(target, images, environment=environment)
        assert (own_bytes(images) < HEAP_MIB * MIB // 4) == (mode == "delta")
        assert bool(list(images.glob("mapped-base-*"))) == (mode == "delta"), "nothing stays that is not needed"
    patched_build.restored(images, environment=MAPPED)
    assert target.ask() == expected


def test_list_of_an_older_checkpoint_is_not_read(delta, stock_build, patched_build, programs, tmp_path, targets):
    """Stock CRIU leaves a delta's list in the folder that it writes again."""
    images, _ = delta
    (stale,) = images.glob("mapped-base-*.txt")
    report = tmp_path / "another"
    another = Target([str(programs / "heap"), "private", "8", str(report)], [report])
    targets.append(another)
    expected = another.start().ask()
    stale.rename(images / f"mapped-base-{another.pid}.txt")
    stock_build.dump(another, images)
    patched_build.restored(images, environment=MAPPED)
    assert another.ask() == expected


def test_base_outlives_a_new_checkpoint_in_its_first_folder(delta, mounted, patched_build, target):
    images, expected = delta
    patched_build.restored(images, environment=MAPPED)
    patched_build.dump(target, mounted / "full")
    patched_build.restored(images, environment=MAPPED)
    assert target.ask() == expected


def test_deleted_base_makes_the_checkpoint_standalone(store, stock_build, patched_build, target):
    expected = target.ask()
    stock_build.dump(target, store / "full")
    patched_build.restored(store / "full", environment=MAPPED)
    shutil.rmtree(store / "full")
    outcome = patched_build.dump(target, store / "second", environment={**MAPPED, **DELTA})
    assert "can't be kept as a base, its pages are dumped" in outcome.log
    assert own_bytes(store / "second") > HEAP_MIB * MIB
    stock_build.restored(store / "second")
    assert target.ask() == expected


@pytest.mark.parametrize("seed", range(int(os.environ.get("GPUCKPT_NATIVE_SEEDS", "40")) // 4))
def test_layout_survives_three_deltas(seed, stock_build, patched_build, programs, store, tmp_path, targets):
    folder = tmp_path / "work"
    folder.mkdir()
    target = Target([str(programs / "torture"), str(seed), str(folder)], [folder / "parent", folder / "child"])
    targets.append(target)
    expected = target.start().ask()
    environment = {**MAPPED, **DELTA, "CRIU_MAPPED_MIN_KB": "4"}
    folders = [store / str(0 if seed % 4 > 1 else generation) for generation in range(4)]  # half of them in place
    try:
        stock_build.dump(target, folders[0])
        for generation in (1, 2, 3):
            patched_build.restored(folders[generation - 1], environment=environment)
            assert target.ask() == expected, f"generation {generation}"
            patched_build.dump(target, folders[generation], environment=environment)
        patched_build.restored(folders[3], environment=environment)
        assert target.ask() == expected
    finally:
        for pid in target.pids:
            for name in Path("/dev/shm").glob(f"torture-{pid}-*"):
                name.unlink()
