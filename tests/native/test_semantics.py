# SPDX-License-Identifier: GPL-3.0-or-later
"""What a program may do with its memory after a mapped restore, and what it may not notice."""

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from criu_harness import HarnessError, Target, descendants, image_ranges, largest_mapping, pss_kib

MAPPED = {"CRIU_MAPPED_RESTORE": "1"}
DRIVER = {**MAPPED, "CRIU_MAPPED_SCOPE": "driver"}
MIB = 1 << 20


@pytest.fixture(params=["exec", "noexec"])
def mounted(request, store: Path) -> Path:
    """The store, once as a plain tmpfs and once mounted as checkpoint stores are."""
    subprocess.run(["mount", "-o", f"remount,nosuid,nodev,{request.param}", store], check=True)
    return store


@pytest.fixture
def start(programs, tmp_path, targets):
    def start(program: str, *arguments: str) -> Target:
        report = tmp_path / f"report-{len(targets)}"
        target = Target([str(programs / program), *arguments, str(report)], [report])
        targets.append(target)
        return target.start()

    return start


@pytest.mark.parametrize("case", ["grow", "shrink-grow", "realloc", "arena", "full-arena", "execute"])
def test_program_notices_nothing(case, stock_build, patched_build, mounted, start):
    target = start("semantics", case)
    stock_build.dump(target, mounted / "images")
    outcome = patched_build.restored(mounted / "images", environment=MAPPED)
    if "arena" in case:
        assert "arena" in outcome.notes("standaside")
    else:
        assert outcome.mapped_bytes > 16 * MIB
        assert image_ranges(target.pid)
    assert target.ask() == [["ok"]]


def test_noexec_store_can_be_unmounted(stock_build, patched_build, store, start):
    """The view that keeps memory executable also keeps the restored process off the mount itself."""
    subprocess.run(["mount", "-o", "remount,noexec", store], check=True)
    target = start("heap", "private", "32")
    expected = target.ask()
    stock_build.dump(target, store / "images")
    patched_build.restored(store / "images", environment=MAPPED)
    subprocess.run(["umount", store], check=True)
    try:
        assert target.ask() == expected
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "gpuckpt-test", store], check=True)


def test_driver_scope_maps_only_what_the_driver_parked(stock_build, patched_build, store, start):
    target = start("heap", "private", "32")
    expected = target.ask()
    heap = largest_mapping(target.pid)
    stock_build.dump(target, store / "images")
    assert patched_build.restored(store / "images", environment=DRIVER).mapped_bytes == 0
    assert target.ask() == expected
    target.stop()

    parked = (heap[0] + 2 * MIB, heap[0] + 10 * MIB)
    (store / "images" / f"cuda-ranges-{target.pid}.txt").write_text(f"{parked[0]:x}-{parked[1]:x}\n")
    outcome = patched_build.restored(store / "images", environment=DRIVER)
    assert outcome.mapped_bytes == 8 * MIB
    assert outcome.summary(target.pid)["maps"] == 1
    assert image_ranges(target.pid) == [parked]
    assert target.ask() == expected


def test_broken_driver_ranges_are_refused(stock_build, patched_build, store, start):
    target = start("heap", "private", "4")
    stock_build.dump(target, store / "images")
    (store / "images" / f"cuda-ranges-{target.pid}.txt").write_text("7f00-garbage\n")
    outcome = patched_build.restore(store / "images", environment=DRIVER)
    assert outcome.returncode != 0
    assert "holds a line that is no range: 7f00-garbage" in outcome.log


def test_unlinked_images_stay_readable(stock_build, patched_build, store, start):
    target = start("heap", "private", "32")
    expected = target.ask()
    stock_build.dump(target, store / "images")
    patched_build.restored(store / "images", environment=MAPPED)
    shutil.rmtree(store / "images")
    assert target.ask() == expected


@pytest.mark.parametrize("environment", [{}, MAPPED, {"CRIU_RESTORE_THREADS": "4"}], ids=["off", "mapped", "threads"])
def test_truncated_image_is_refused(environment, stock_build, patched_build, store, start):
    target = start("heap", "private", "16")
    stock_build.dump(target, store / "images")
    os.truncate(store / "images/pages-1.img", 8 * MIB)
    outcome = patched_build.restore(store / "images", environment=environment)
    assert outcome.returncode != 0
    assert ("page image is truncated" if environment else "Can't read pages data") in outcome.log


def test_map_count_stays_below_the_limit(stock_build, patched_build, store, start, tmp_path):
    target = start("heap", "private", "200")
    expected = target.ask()
    stock_build.dump(target, store / "images")
    # CRIU alone sees the lower limit: the kernel's own is everybody's, and others would run out of mappings.
    limit = tmp_path / "max_map_count"
    limit.write_text("200\n")
    lowered = f'mount --bind {limit} /proc/sys/vm/max_map_count && exec "$@"'
    build = replace(patched_build, launcher=("unshare", "--mount", "sh", "-c", lowered, "sh"))
    outcome = build.restored(store / "images", environment=MAPPED)
    maps = Path(f"/proc/{target.pid}/maps").read_text().count("\n")
    assert target.ask() == expected
    assert maps < 200
    assert outcome.mapped_bytes > 100 * MIB, "coarser pieces, not none"


def test_stands_aside_for_auto_dedup(stock_build, patched_build, store, start):
    target = start("heap", "private", "16")
    expected = target.ask()
    stock_build.dump(target, store / "images")
    outcome = patched_build.restored(store / "images", "--auto-dedup", environment=MAPPED)
    assert "auto-dedup" in outcome.notes("standaside")
    assert outcome.mapped_bytes == 0
    assert target.ask() == expected


def test_stands_aside_for_incremental_images(patched_build, store, start):
    target = start("heap", "private", "16")
    expected = target.ask()
    (store / "first").mkdir()
    pre = patched_build.run("pre-dump", store / "first", "-t", str(target.pid), "--track-mem")
    if pre.returncode:
        pytest.skip("this kernel tracks no dirty memory")
    patched_build.dump(target, store / "second", "--track-mem", "--prev-images-dir", "../first")
    outcome = patched_build.restored(store / "second", environment=MAPPED)
    assert "parent-images" in outcome.notes("standaside")
    assert target.ask() == expected


def test_standalone_generations(stock_build, patched_build, store, start):
    generations = 3
    target = start("heap", "private", "48")
    expected = target.ask()
    stock_build.dump(target, store / "0")
    size = (store / "0/pages-1.img").stat().st_size
    for generation in range(generations):
        patched_build.restored(store / str(generation), environment=MAPPED)
        maps = Path(f"/proc/{target.pid}/maps").read_text().count("\n")
        if generation % 2:  # the images may go before the next checkpoint or after it
            shutil.rmtree(store / str(generation))
        patched_build.dump(target, store / str(generation + 1))
        shutil.rmtree(store / str(generation), ignore_errors=True)
        grown = (store / str(generation + 1) / "pages-1.img").stat().st_size - size
        assert abs(grown) < MIB, "every page once, in every generation"
    stock_build.restored(store / str(generations))
    assert target.ask() == expected
    plain = Path(f"/proc/{target.pid}/maps").read_text().count("\n")
    assert plain < 40 < maps, "what the mapped restore split is joined again"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CRIU_MAPPED_RESTORE", "yes"),
        ("CRIU_MAPPED_MIN_KB", "0"),
        ("CRIU_MAPPED_MIN_KB", "64k"),
        ("CRIU_MAPPED_SCOPE", "gpu"),
        ("CRIU_MAPPED_REDUMP", "full"),
        ("CRIU_MAPPED_ALLOCATORS", "jemalloc"),
        ("CRIU_RESTORE_THREADS", "1000"),
        ("CRIU_DRIVER_HUGE_PAGES", "always"),
        ("CRIU_DRIVER_POPULATE", "2"),
        ("CRIU_FREEZE_POLL_MS", "-1"),
        ("CRIU_HW_BREAKPOINTS", "off"),
    ],
)
def test_wrong_switch_is_named(patched_build, name, value):
    done = subprocess.run(
        [patched_build.binary, "check"], env={**os.environ, name: value}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{name}={value} is " in done.stdout + done.stderr


def test_harness_notices_a_failed_restore(stock_build, store):
    (store / "empty").mkdir()
    with pytest.raises(HarnessError, match="restore failed"):
        stock_build.restored(store / "empty")


def test_forked_relatives_keep_their_own_pages(stock_build, patched_build, programs, store, tmp_path, targets):
    folder = tmp_path / "work"
    folder.mkdir()
    target = Target([str(programs / "torture"), "7", str(folder)], [folder / "parent", folder / "child"])
    targets.append(target)
    expected = target.start().ask()
    assert expected[0] != expected[1]
    stock_build.dump(target, store / "images")
    patched_build.restored(store / "images", environment={**MAPPED, "CRIU_MAPPED_MIN_KB": "4"})
    assert descendants(target.pid) == target.pids
    assert target.ask() == expected


def test_forked_relatives_share_what_they_inherited(stock_build, patched_build, programs, store, tmp_path, targets):
    reports = [tmp_path / "report", *(tmp_path / f"report.{child}" for child in (1, 2, 3))]
    target = Target([str(programs / "heap"), "inherited", "64", str(reports[0])], reports)
    targets.append(target)
    expected = target.start().ask()
    stock_build.dump(target, store / "images")
    pss_mib = {}
    for name, build in {"stock": stock_build, "patched": patched_build}.items():
        shutil.copytree(store / "images", store / name)
        outcome = build.restored(store / name, environment=MAPPED)
        shutil.rmtree(store / name)
        assert target.ask() == expected
        pss_mib[name] = sum(map(pss_kib, target.pids)) / 1024
        target.stop()
    shutil.rmtree(store / "images")
    print(f"Pss of four relatives in MiB: {pss_mib}")
    assert "inherited" in outcome.notes("standaside")
    assert pss_mib["patched"] < 1.1 * pss_mib["stock"]
