# SPDX-License-Identifier: GPL-3.0-or-later
"""Parallel restore of shared memory, memory that copies share, and the build with all switches off."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from criu_harness import Build, HarnessError, Target, descendants, wait_until

MIB = 1 << 20
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
    # A page or two of the stack changes now and then, whoever dumps: what differs on purpose differs every time.
    contents = {page: {name: {dump[page] for dump in dumped} for name, dumped in dumps.items()} for page in pages}
    assert not {page for page, found in contents.items() if found["stock"].isdisjoint(found["patched"])}
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


def pss_kib(pid: int) -> int:
    """Proportional set size: pages that n processes share count 1/n each."""
    return int(re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])


class Copy:
    """One more restored copy of a process, in a pid namespace of its own, where its old pid is free."""

    def __init__(self, build: Build, images: Path, environment: dict[str, str], log: Path) -> None:
        ready = log.with_suffix(".ready")
        ready.unlink(missing_ok=True)
        restore = f"{build.binary} restore -d -v4 -D {images} -o {log} && touch {ready} && exec sleep 1000"
        self.namespace = subprocess.Popen(
            ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "sh", "-c", restore],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until(lambda: ready.exists() or self.namespace.poll() is not None, "a copy to be restored")
        except HarnessError:
            self.stop()
            raise
        if not ready.exists():
            raise HarnessError(f"restore failed:\n{log.read_text()[-2000:]}")
        # unshare, the first process of the namespace, and what was restored into it
        self.pid = descendants(self.namespace.pid)[2]

    def stop(self) -> None:
        self.namespace.kill()
        self.namespace.wait()


def pss_of_copies(build: Build, images: Path, environment: dict[str, str], scratch: Path) -> list[int]:
    """MiB that 1, 2, 3 and 4 copies take together, after each has read all of its memory."""
    copies: list[Copy] = []
    totals = []
    try:
        for n in range(4):
            copies.append(Copy(build, images, environment, scratch / f"copy-{n}.log"))
            touch_all(copies[-1].pid)
            totals.append(sum(pss_kib(copy.pid) for copy in copies) >> 10)
    finally:
        for copy in copies:
            copy.stop()
    return totals


def test_copies_share_clean_pages(stock_build, patched_build, programs, store, tmp_path, targets):
    target = heap(programs, tmp_path / "report", targets, "private", 64)
    stock_build.dump(target, store / "images")
    read = pss_of_copies(stock_build, store / "images", {}, tmp_path)
    mapped = pss_of_copies(patched_build, store / "images", {"CRIU_MAPPED_RESTORE": "1"}, tmp_path)
    print(f"Pss of 1..4 copies in MiB: stock {read}, mapped {mapped}")
    assert read[3] > 4 * 60
    assert mapped[3] < 1.5 * mapped[0]


def touch_all(pid: int) -> None:
    """Reads every page, as the process itself would, so that the page tables count what it uses."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            if "rw-p" in line and end < 1 << 47:
                for at in range(start, end, MIB):
                    os.pread(memory.fileno(), min(MIB, end - at), at)
