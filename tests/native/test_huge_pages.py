# SPDX-License-Identifier: GPL-3.0-or-later
"""What the GPU driver parked: huge pages where it is read, one populated mapping where it is mapped."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from criu_harness import Target, largest_mapping

MIB = 1 << 20
BLOCK = 4 * MIB  # so much memory is filled by one thread at a time
HUGE = {"CRIU_DRIVER_HUGE_PAGES": "1"}
POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True)
class Mapping:
    """One mapping of /proc/PID/smaps; sizes in bytes."""

    start: int
    end: int
    resident_bytes: int
    huge_bytes: int
    flags: tuple[str, ...]


def mappings(pid: int, start: int, end: int) -> list[Mapping]:
    """The mappings of a process that overlap start to end."""
    found = re.findall(
        r"^([0-9a-f]+)-([0-9a-f]+) .*?^Rss:\s+(\d+) kB.*?^AnonHugePages:\s+(\d+) kB.*?^VmFlags: ([a-z ]+)$",
        Path(f"/proc/{pid}/smaps").read_text(),
        re.M | re.S,
    )
    all_of_them = [
        Mapping(int(a, 16), int(b, 16), int(resident) << 10, int(huge) << 10, tuple(flags.split()))
        for a, b, resident, huge, flags in found
    ]
    return [mapping for mapping in all_of_them if mapping.start < end and start < mapping.end]


def policy() -> str:
    """What the kernel does: always, madvise or never."""
    return re.search(r"\[(\w+)\]", POLICY.read_text())[1]


class Parked:
    """A process at rest in images, and the range of its memory that the driver is said to have parked data in."""

    def __init__(self, target: Target, images: Path, start: int, end: int) -> None:
        self.target, self.images, self.start, self.end = target, images, start, end
        (images / f"cuda-ranges-{target.pid}.txt").write_text(f"{start:x}-{end:x}\n")

    @property
    def mappings(self) -> list[Mapping]:
        """Those of the living process in that range."""
        return mappings(self.target.pid, self.start, self.end)


@pytest.fixture
def park(programs, stock_build, store, tmp_path, targets):
    """Starts the heap and checkpoints it; the driver's range is cut off its ends by so many bytes."""

    def park(kind: str = "private", before: int = 0, behind: int = 0) -> Parked:
        report = tmp_path / "report"
        target = Target([str(programs / "heap"), kind, "64", str(report)], [report])
        targets.append(target)
        target.start()
        park.digests = target.ask()
        start, end = largest_mapping(target.pid)
        stock_build.dump(target, store / "images")
        return Parked(target, store / "images", start + before, end - behind)

    return park


@pytest.mark.parametrize("threads", [1, 4])
def test_driver_memory_gets_huge_pages(threads, patched_build, park):
    parked = park(before=9 * MIB, behind=5 * MIB)
    environment = {**HUGE, "CRIU_RESTORE_THREADS": str(threads)}
    outcome = patched_build.restored(parked.images, environment=environment)
    [mapping] = parked.mappings
    assert (mapping.start, mapping.end) == (parked.start, parked.end), "the advice ends where the range does"
    assert "hg" in mapping.flags
    if policy() != "never":
        assert mapping.huge_bytes >= 44 * MIB
    neighbours = mappings(parked.target.pid, parked.start - MIB, parked.end + MIB)
    assert [("hg" in found.flags) for found in neighbours] == [False, True, False]
    assert outcome.asked_huge_bytes(parked.target.pid) == 50 * MIB
    assert outcome.summary(parked.target.pid)["threads"] == threads
    assert parked.target.ask() == park.digests


def test_without_the_switch_nothing_changes(patched_build, park):
    parked = park()
    outcome = patched_build.restored(parked.images, environment={"CRIU_RESTORE_THREADS": "4"})
    [mapping] = parked.mappings
    assert "hg" not in mapping.flags
    if policy() != "always":
        assert mapping.huge_bytes == 0
    assert outcome.asked_huge_bytes(parked.target.pid) == 0
    assert parked.target.ask() == park.digests


@pytest.mark.parametrize("scope", ["driver", "all"])
def test_mapped_memory_is_left_alone(scope, patched_build, park):
    parked = park()
    environment = {**HUGE, "CRIU_MAPPED_RESTORE": "1", "CRIU_MAPPED_SCOPE": scope}
    outcome = patched_build.restored(parked.images, environment=environment)
    assert outcome.mapped_bytes >= 60 * MIB
    assert outcome.asked_huge_bytes(parked.target.pid) == 0
    assert not any("hg" in mapping.flags for mapping in parked.mappings)
    assert parked.target.ask() == park.digests


@pytest.mark.parametrize("scope", ["driver", "all"])
@pytest.mark.parametrize("threads", [1, 4])
def test_mapped_memory_is_populated(threads, scope, patched_build, park):
    parked = park(before=9 * MIB, behind=5 * MIB)
    environment = {"CRIU_MAPPED_RESTORE": "1", "CRIU_MAPPED_SCOPE": scope, "CRIU_RESTORE_THREADS": str(threads)}
    outcome = patched_build.restored(parked.images, environment={**environment, "CRIU_DRIVER_POPULATE": "1"})
    [mapping] = parked.mappings  # one, without anchors: nobody but the driver touches it
    assert mapping.start <= parked.start
    assert mapping.end >= parked.end
    assert mapping.resident_bytes >= 50 * MIB
    assert outcome.notes("populate") == {"driver"}
    assert parked.target.ask() == park.digests


def test_without_populate_pages_come_when_they_are_touched(patched_build, park):
    parked = park()
    outcome = patched_build.restored(
        parked.images, environment={"CRIU_MAPPED_RESTORE": "1", "CRIU_RESTORE_THREADS": "4"}
    )
    assert outcome.mapped_bytes >= 60 * MIB
    assert sum(mapping.resident_bytes for mapping in parked.mappings) < 32 * MIB
    assert parked.target.ask() == park.digests


def test_advice_of_the_process_is_kept(patched_build, park):
    parked = park("small-pages")
    outcome = patched_build.restored(parked.images, environment={**HUGE, "CRIU_RESTORE_THREADS": "4"})
    [mapping] = parked.mappings
    assert "nh" in mapping.flags
    assert mapping.huge_bytes == 0
    assert outcome.asked_huge_bytes(parked.target.pid) == 0
    assert parked.target.ask() == park.digests


def test_no_huge_page_is_filled_by_two_threads(patched_build, park):
    """One thread logs what it reads, and several draw from the same list."""
    parked = park(before=3 * MIB)
    outcome = patched_build.restored(parked.images, environment=HUGE)
    reads = [(int(at, 16), int(size)) for at, size in re.findall(r"Preadv 0x([0-9a-f]+):(\d+)\.\.\.", outcome.log)]
    inside = sorted(read for read in reads if parked.start <= read[0] < parked.end)
    assert sum(size for _, size in inside) == parked.end - parked.start
    assert inside[0][0] == parked.start
    assert all(at % BLOCK == 0 for at, _ in inside[1:])
    assert max(size for _, size in inside) == BLOCK
