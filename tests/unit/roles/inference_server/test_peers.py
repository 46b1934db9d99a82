# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ranks of a server do together, with real processes on a fake driver (fake_memory.c).

They map memory of one another at addresses that stay, and an error of one becomes an error of all.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from project import ROOT
from ranks.server import Server

PLUGIN = ROOT / "roles" / "inference_server" / "files" / "vllm_plugin"
RANK = ROOT / "tests" / "ranks" / "rank.py"
RANK_OF_VLLM = ROOT / "tests" / "ranks" / "rank_of_vllm.py"
LIMIT_S = 5.0


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    monkeypatch.syspath_prepend(str(PLUGIN))
    yield lambda name: importlib.import_module(f"gpuckpt_vllm.{name}")
    for name in [name for name in sys.modules if name.startswith("gpuckpt_vllm")]:
        del sys.modules[name]


Start = Callable[[int], Server]


@pytest.fixture
def start(fake_driver: Path, tmp_path: Path) -> Iterator[Start]:
    started: list[Server] = []

    def begin(count: int) -> Server:
        environment = {"GPUCKPT_LIBCUDA": str(fake_driver), "TMPDIR": str(tmp_path), "RANK_LIMIT_S": str(LIMIT_S)}
        started.append(Server(RANK, count, environment))
        return started[-1]

    yield begin
    for server in started:
        server.end()


def values(count: int) -> list[list[int]]:
    return [[10 * (rank + 1) + number for rank in range(count)] for number in range(2)]


@pytest.mark.parametrize("count", [2, 4])
def test_every_rank_reads_what_the_others_wrote_at_addresses_that_stay(
    start: Start, tmp_path: Path, count: int
) -> None:
    server = start(count)
    first = server.tell("map")
    assert [told["mapped"] for told in first] == [2 * count] * count
    for _ in range(3):
        server.tell("write")
        assert [told["seen"] for told in server.tell("read")] == [values(count)] * count
        released = server.tell("release")
        assert [told["mapped"] for told in released] == [0] * count, "nothing is shared during a checkpoint"
        again = server.tell("map")
        assert [told["addresses"] for told in again] == [told["addresses"] for told in first], "graphs hold them"
        assert [told["seen"] for told in server.tell("read")] == [[[0] * count] * 2] * count, "signals begin at 0"
        assert [told["descriptors"] for told in again] == [told["descriptors"] for told in first]
    assert list(tmp_path.glob("gpuckpt-peers-*")) == []


@pytest.mark.parametrize(
    "call",
    ["cuMemCreate", "cuMemMap", "cuMemExportToShareableHandle", "cuMemsetD8_v2", "cuMemImportFromShareableHandle"],
)
def test_an_error_of_one_rank_is_an_error_of_all(start: Start, call: str) -> None:
    server = start(3)
    server.tell("map")
    server.tell("release")
    server.tell("refuse", f"refuse {call}", "refuse")
    told = server.tell("map")
    assert all(f"rank 1: CudaError: {call} failed" in one["error"] for one in told), told
    assert all("on 1 of 3 ranks" in one["error"] for one in told)
    assert [one["mapped"] for one in told] == [0, 0, 0], "no rank keeps what another has not"
    server.tell("refuse")
    server.tell("map")
    server.tell("write")
    assert [one["seen"] for one in server.tell("read")] == [values(3)] * 3, "and it can be tried again"


def test_a_rank_that_has_ended_is_no_endless_wait(start: Start) -> None:
    server = start(3)
    began = time.monotonic()
    told = server.tell("map", "end", "map")
    assert "error" in told[0]
    assert "error" in told[2]
    assert time.monotonic() - began < 10 * LIMIT_S
    assert (told[0]["mapped"], told[2]["mapped"]) == (0, 0)


# --- all of it, around fakes of vLLM and NCCL ---

BUFFERS = 2 * 2  # of two groups, each with memory of two ranks


@pytest.fixture
def vllm(fake_driver: Path, tmp_path: Path) -> Iterator[Server]:
    environment = {"GPUCKPT_LIBCUDA": str(fake_driver), "TMPDIR": str(tmp_path), "RANK_LIMIT_S": str(LIMIT_S)}
    server = Server(RANK_OF_VLLM, 2, {**environment, "NCCL_NVLS_ENABLE": "0"})
    yield server
    server.end()


def test_nothing_is_shared_after_a_release_and_all_of_it_after_a_rebuild(vllm: Server) -> None:
    for _ in range(2):
        for told in vllm.tell("release"):
            assert "error" not in told
            assert (told["mapped"], told["live"]) == (0, 0)
        for told in vllm.tell("rebuild"):
            assert "error" not in told
            assert (told["mapped"], told["live"], told["same"]) == (BUFFERS, 0, True), "NCCL waits until it is needed"
            assert told["destroyed"] == [False, False]
        used = vllm.tell("use-nccl")
        assert used[0]["comms"] == used[1]["comms"], "ranks meet in the same communicators"
        assert [told["live"] for told in used] == [2, 2]


def test_a_release_that_fails_on_one_rank_leaves_a_server_that_serves(vllm: Server) -> None:
    vllm.tell("set FAKE_NCCL_REFUSES ncclCommDestroy", "set FAKE_NCCL_REFUSES")
    for told in vllm.tell("release"):
        assert "RankError: the release of NCCL failed on 1 of 2 ranks; rank 0: RuntimeError" in told["error"]
        assert (told["mapped"], told["same"]) == (BUFFERS, True)
    used = vllm.tell("use-nccl")
    assert used[0]["comms"] == used[1]["comms"]
    assert [told["live"] for told in used] == [2, 2], "what was left of the old ones is given up"
    vllm.tell("set FAKE_NCCL_REFUSES")
    assert [told["live"] for told in vllm.tell("release")] == [0, 0], "and it can be tried again"


def test_a_release_that_fails_before_nccl_was_needed_again_leaves_one_communicator(vllm: Server) -> None:
    for step in ("release", "rebuild"):
        assert all("error" not in told for told in vllm.tell(step))
    vllm.tell("set FAKE_NCCL_REFUSES ncclCommDestroy", "set FAKE_NCCL_REFUSES")
    assert all("rank 0: RuntimeError" in told["error"] for told in vllm.tell("release"))
    vllm.tell("set FAKE_NCCL_REFUSES")
    used = vllm.tell("use-nccl")
    assert used[0]["comms"] == used[1]["comms"]
    assert [told["live"] for told in used] == [2, 2]


def test_what_cannot_be_released_is_refused_before_anything_is(vllm: Server) -> None:
    vllm.tell("set FAKE_SYMMETRIC", "set FAKE_SYMMETRIC 1")
    for told in vllm.tell("release"):
        assert "rank 1: RuntimeError: the group tp:0 cannot be released" in told["error"]
        assert "set VLLM_USE_NCCL_SYMM_MEM=0" in told["error"]
        assert (told["mapped"], told["live"], told["made"]) == (BUFFERS, 2, 2), "all as before"


def test_multicast_is_refused(vllm: Server) -> None:
    vllm.tell("set NCCL_NVLS_ENABLE 1")
    for told in vllm.tell("release"):
        assert "on 2 of 2 ranks" in told["error"]
        assert "set NCCL_NVLS_ENABLE=0" in told["error"]
        assert (told["mapped"], told["live"]) == (BUFFERS, 2)


def test_nccl_that_does_not_connect_again_is_an_error_where_it_is_needed(vllm: Server) -> None:
    vllm.tell("release")
    vllm.tell("set FAKE_NCCL_REFUSES ncclCommInitRank")
    assert all("error" not in told for told in vllm.tell("rebuild")), "nobody has needed it yet"
    assert all("ncclCommInitRank failed" in told["error"] for told in vllm.tell("use-nccl"))


def test_buffers_that_cannot_be_made_anew_are_an_error_of_all(vllm: Server) -> None:
    vllm.tell("release")
    vllm.tell("set GPUCKPT_FAKE_REFUSE", "set GPUCKPT_FAKE_REFUSE cuMemMap")
    for told in vllm.tell("rebuild"):
        assert "RankError: making buffers anew failed on 2 of 2 ranks" in told["error"]
        assert "rank 1: CudaError: cuMemMap failed" in told["error"]
        assert told["mapped"] == 0
    vllm.tell("set GPUCKPT_FAKE_REFUSE")
    assert [told["mapped"] for told in vllm.tell("rebuild")] == [BUFFERS, BUFFERS], "and it can be tried again"


def test_a_rank_that_ends_during_a_release_is_an_error_of_the_other(vllm: Server) -> None:
    told = vllm.tell("release", "end")
    assert "RankError: a rank says nothing in time" in told[0]["error"]


# --- the vote ---


class Fixed:
    """A group whose other ranks have said their words already."""

    def __init__(self, rank: int, *others: bytes) -> None:
        self.rank, self.size, self._others, self.said = rank, len(others) + 1, others, b""

    def gather(self, word: bytes) -> list[bytes]:
        self.said = word
        return [*self._others[: self.rank], word, *self._others[self.rank :]]


def test_a_vote_without_problems_is_silent(plugin: Callable[[str], ModuleType]) -> None:
    plugin("ranks").agree(Fixed(1, b"", b""), None, "a step")


def test_a_vote_names_the_step_and_every_rank_that_failed(plugin: Callable[[str], ModuleType]) -> None:
    ranks = plugin("ranks")
    group = Fixed(0, b"", b"OSError: no space")
    with pytest.raises(
        ranks.RankError, match="the step failed on 2 of 3 ranks; rank 0: ValueError: odd; rank 2: OSError: no space"
    ):
        ranks.agree(group, ValueError("odd"), "the step")


def test_a_rank_that_is_alone_raises_its_own_error(plugin: Callable[[str], ModuleType]) -> None:
    ranks = plugin("ranks")
    with pytest.raises(ValueError, match="odd"):
        ranks.agree(ranks.Alone(), ValueError("odd"), "the step")


def test_what_is_too_long_for_a_vote_is_shortened(plugin: Callable[[str], ModuleType]) -> None:
    ranks = plugin("ranks")
    group = Fixed(0, b"")
    with pytest.raises(ranks.RankError):
        ranks.agree(group, ValueError("x" * 2000), "the step")
    assert len(group.said) == ranks.MOST_BYTES


# --- what is worked out later ---


def test_a_value_comes_at_once_when_it_is_wanted(plugin: Callable[[str], ModuleType]) -> None:
    value = plugin("later").Later(lambda: 3, delay_s=60)
    assert value.get(5) == 3


def test_a_value_comes_by_itself_after_the_delay(plugin: Callable[[str], ModuleType]) -> None:
    begun = threading.Event()
    plugin("later").Later(begun.set, delay_s=0.01)
    assert begun.wait(5)


def test_what_fails_later_is_an_error_of_whoever_asks(plugin: Callable[[str], ModuleType]) -> None:
    def make() -> None:
        raise RuntimeError("NCCL is not there")

    value = plugin("later").Later(make, delay_s=0)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="NCCL is not there"):
            value.get(5)


def test_a_value_that_never_comes_is_no_endless_wait(plugin: Callable[[str], ModuleType]) -> None:
    held = threading.Event()
    value = plugin("later").Later(held.wait, delay_s=0)
    with pytest.raises(TimeoutError):
        value.get(0.05)
    held.set()
