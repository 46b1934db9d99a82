# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered of a golden checkpoint, and what it is worth."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.golden import commit, history, identity
from ansible.module_utils.ckpt.golden.commit import Golden
from ansible.module_utils.ckpt.golden.history import History
from ansible.module_utils.ckpt.golden.supervisor import Serving
from ansible.module_utils.ckpt.golden.wanted import Wanted
from ansible.module_utils.ckpt.safety import locks

NOW = datetime(2026, 1, 4, tzinfo=UTC)


@pytest.fixture
def served(tmp_path: Path) -> Wanted:
    server = {"name": "one", "kind": "reference", "model": "m", "port": 18080, "command": ["/usr/bin/true"]}
    return Wanted("one", "process", server, str(tmp_path / "golden"))


def golden_of(served: Wanted, **change: object) -> Golden:
    folder = Path(commit.folder_for(served, "instance"))
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{}")
    values = {"cold_s": 30.25, "made_s": 61.0, **change}
    found = Golden(
        "one", "instance", str(folder), identity.of(served), "2026-01-01T00:00:00+00:00", 0.25, 64 << 20, **values
    )
    commit.save(served, found)
    return found


def start(mode: str, why: list[str] | None = None, seconds: float = 0.5) -> Serving:
    me = locks.this_process("gpuckpt-serve")
    return Serving("one", "instance", mode, why or [], False, seconds, "2026-01-02T00:00:00+00:00", me, {})


def test_starts_are_counted_by_how_they_came_up(served: Wanted) -> None:
    golden_of(served)
    assert history.load(served) == History()
    history.note(served, start("restored"))
    history.note(served, start("cold", ["process number 7 is in use"]))
    history.note(served, start("restored", seconds=0.75))
    found = history.load(served)
    assert (found.restored, found.last_restored_s, found.last_restored_at) == (2, 0.75, "2026-01-02T00:00:00+00:00")
    assert (found.cold, found.last_cold_why) == (1, ["process number 7 is in use"])


def test_a_server_without_a_checkpoint_leaves_no_note(served: Wanted) -> None:
    history.note(served, start("cold"))
    assert not Path(served.folder).exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"restored": "many"}'])
def test_a_note_that_cannot_be_read_begins_anew(served: Wanted, content: str) -> None:
    golden_of(served)
    (Path(commit.home(served)) / history.NAME).write_text(content)
    assert history.load(served) == History()
    history.note(served, start("restored"))
    assert history.load(served).restored == 1


def test_what_a_restore_saves(served: Wanted) -> None:
    found = history.worth(golden_of(served), History(restored=10))
    assert found is not None
    assert (found.saved_s, found.made_s, found.break_even, found.saved_so_far_s) == (30.0, 61.0, 3, 300.0)
    assert found.gpu_saved_s == 0, "there is no GPU here"


def test_each_gpu_is_saved_the_time(served: Wanted) -> None:
    golden = golden_of(served)
    golden.identity["gpus"] = ["H100", "H100"]
    found = history.worth(golden, History())
    assert found is not None
    assert found.gpu_saved_s == 60.0


def test_one_that_saves_nothing_never_pays(served: Wanted) -> None:
    found = history.worth(golden_of(served, cold_s=0.2), History())
    assert found is not None
    assert found.break_even is None


def test_of_one_that_was_made_elsewhere_nothing_is_claimed(served: Wanted) -> None:
    assert history.worth(golden_of(served, cold_s=None), History()) is None


def test_a_line_for_people(served: Wanted) -> None:
    golden = golden_of(served)
    (one,) = history.overview([served])
    said = history.in_words(one, NOW)
    assert said.startswith(
        f"one: 64 MiB in {golden.folder}, 3 days old, fits, not served from yet, its trial took 0.25 s"
    )
    assert said.endswith("saves 30.00 s a start, took 61.0 s to make, pays after 3 starts")
    history.note(served, start("restored"))
    (one,) = history.overview([served])
    assert "restored 1 times, the last in 0.50 s at 2026-01-02" in history.in_words(one, NOW)


def test_one_that_does_not_fit_says_so(served: Wanted) -> None:
    golden = golden_of(served)
    golden.identity["kernel"] = "5.0"
    commit.save(served, golden)
    (one,) = history.overview([served])
    assert "does not fit (kernel was 5.0, is " in history.in_words(one, NOW)


@pytest.mark.parametrize(
    ("now", "said"),
    [("2026-01-01T00:00:30", "30 seconds"), ("2026-01-01T01:30:00", "2 hours"), ("2025-12-31T00:00:00", "0 seconds")],
)
def test_ages(now: str, said: str) -> None:
    assert history._age("2026-01-01T00:00:00+00:00", datetime.fromisoformat(f"{now}+00:00")) == said
