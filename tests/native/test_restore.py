# SPDX-License-Identifier: GPL-3.0-or-later
"""Parallel restore of shared memory, memory that copies share, and the build with all switches off."""

import re
from pathlib import Path

import pytest
from criu_harness import MIB, Target, pss_of_copies

# What differs between two dumps of one process by the same CRIU: times, and the ids that the kernel hands out.
VOLATILE = {"stats-dump", "dump.log", "inventory.img", "timens-0.img"}


def heap(programs: Path, report: Path, targets: list[Target], kind: str, mib: int) -> Target:
    target = Target([str(programs / "heap"), kind, str(mib), str(report)], [report])
    targets.append(target)
    return target.start()


@pytest.mark.parametrize("threads", [1, 8])
def test_shared_memory(threads, stock_build, patched_build, programs, store, tmp_path, targets):
    target = heap(programs, tmp_path / "report", targets, "shared", 96)
    expected = target.ask()
    stock_build.dump(target, store / "images")
    outcome = patched_build.restored(store / "images", environment={"CRIU_RESTORE_THREADS": str(threads)})
    assert outcome.notes("shmem-read") == ({f"threads-{threads}"} if threads > 1 else set())
    assert target.ask() == expected
    assert len(list(Path(f"/proc/{target.pid}/task").iterdir())) == 1, "no helper thread stays"


def test_private_memory_by_threads(stock_build, patched_build, programs, store, tmp_path, targets):
    target = heap(programs, tmp_path / "report", targets, "private", 96)
    expected = target.ask()
    stock_build.dump(target, store / "images")
    outcome = patched_build.restored(store / "images", environment={"CRIU_RESTORE_THREADS": "8"})
    assert outcome.summary(target.pid)["threads"] == 8
    assert outcome.summary(target.pid)["read_bytes"] > 96 * MIB
    assert outcome.mapped_bytes == 0
    assert target.ask() == expected
    assert len(list(Path(f"/proc/{target.pid}/task").iterdir())) == 1, "no helper thread stays"


def image_pages(folder: Path) -> dict[tuple[str, int], bytes]:
    """Every 4 KiB of every image that does not hold times or ids."""
    return {
        (path.name, offset): data[offset : offset + 4096]
        for path in sorted(folder.iterdir())
        if path.name not in VOLATILE and path.is_file()
        for data in [path.read_bytes()]
        for offset in range(0, len(data) or 1, 4096)
    }


def test_all_off_dumps_the_same_images(stock_build, patched_build, programs, store, tmp_path, targets):
    target = heap(programs, tmp_path / "report", targets, "private", 16)
    target.ask()
    dumps: dict[str, list[dict[tuple[str, int], bytes]]] = {"stock": [], "patched": []}
    for turn in range(3):
        for name, build in [("stock", stock_build), ("patched", patched_build)]:
            build.dump(target, store / f"{name}-{turn}", "--leave-running")
            dumps[name].append(image_pages(store / f"{name}-{turn}"))
    pages = dumps["stock"][0].keys()
    assert all(dump.keys() == pages for dumped in dumps.values() for dump in dumped)
    contents = {page: {name: {dump[page] for dump in dumped} for name, dumped in dumps.items()} for page in pages}
    # A page or two of the stack changes now and then, whoever dumps, and may do so at every dump.
    # What differs on purpose is the same in all dumps of one build, and never the same in both.
    assert not {
        page
        for page, found in contents.items()
        if len(found["stock"]) == len(found["patched"]) == 1 and found["stock"] != found["patched"]
    }
    assert sum(len(found["stock"] | found["patched"]) > 1 for found in contents.values()) < 8


def test_all_off_restores_as_stock_does(stock_build, patched_build, programs, store, tmp_path, targets):
    target = heap(programs, tmp_path / "report", targets, "private", 16)
    expected = target.ask()
    stock_build.dump(target, store / "images")
    maps = {}
    for name, build in {"stock": stock_build, "patched": patched_build}.items():
        outcome = build.restored(store / "images")
        assert "gpuckpt:" not in outcome.log
        maps[name] = Path(f"/proc/{target.pid}/maps").read_text()
        assert target.ask() == expected
        target.stop()
    drop_inodes = re.compile(r"\[(vdso|vvar[^\]]*)\]")
    assert drop_inodes.sub("", maps["stock"]).count("\n") == maps["patched"].count("\n")


def test_copies_share_clean_pages(stock_build, patched_build, programs, store, tmp_path, targets):
    target = heap(programs, tmp_path / "report", targets, "private", 64)
    stock_build.dump(target, store / "images")
    read = pss_of_copies(stock_build, store / "images", {}, tmp_path)
    mapped = pss_of_copies(patched_build, store / "images", {"CRIU_MAPPED_RESTORE": "1"}, tmp_path)
    print(f"Pss of 1..4 copies in MiB: stock {read}, mapped {mapped}")
    assert read[3] > 4 * 60
    assert mapped[3] < 1.5 * mapped[0]


@pytest.mark.parametrize(("value", "stepped"), [(None, False), ("1", False), ("0", True)])
def test_tasks_are_stopped_with_and_without_breakpoints(
    value, stepped, patched_build, programs, store, tmp_path, targets
):
    environment = {} if value is None else {"CRIU_HW_BREAKPOINTS": value}
    target = heap(programs, tmp_path / "report", targets, "private", 16)
    expected = target.ask()
    patched_build.dump(target, store / "images", environment=environment)
    patched_build.restored(store / "images", environment=environment)
    logs = [(store / "images" / f"{name}.log").read_text() for name in ("dump", "restore")]
    assert [f"Force no-breakpoints restore of {target.pid}\n" in log for log in logs] == [stepped, stepped]
    assert target.ask() == expected
