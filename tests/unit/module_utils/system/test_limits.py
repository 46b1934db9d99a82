# SPDX-License-Identifier: GPL-3.0-or-later
"""No wait without a limit: what hangs is given up, and what a command leaves is ended. With real processes."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.doctor import trial
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.system import ending
from ansible.module_utils.ckpt.system.commands import Commands

# far more than anything here takes, far less than what would hang
PATIENCE_S = 60.0


def sleepers(mark: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", f"^sleep {mark}$"], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in found.split()]


def test_a_stopped_child_that_holds_the_output_is_not_waited_for() -> None:
    """As the processes of a restore are whose CRIU was killed."""
    began = time.monotonic()
    result = Commands().run(["sh", "-c", "echo said; sleep 71234 & kill -STOP $!; exit 3"])
    assert (result.rc, result.stdout) == (3, "said\n")
    assert time.monotonic() - began < PATIENCE_S
    assert not sleepers("71234")


def test_what_a_command_leaves_goes_on_if_it_succeeds() -> None:
    assert Commands().run(["sh", "-c", "sleep 71235 & exit 0"]).rc == 0
    deadline = time.monotonic() + PATIENCE_S
    while not (found := sleepers("71235")):
        assert time.monotonic() < deadline
    [left] = found
    assert not ending.end_all(lambda process: process.pid == left)
    assert not sleepers("71235")


def test_a_command_over_its_limit_ends_with_all_that_it_started() -> None:
    with pytest.raises(CkptError, match=r"did not end within 1 s") as caught:
        Commands().run(["sh", "-c", "echo waiting >&2; setsid sleep 71236; true"], timeout_s=1)
    assert caught.value.reason == "timeout"
    assert caught.value.log_lines == ["waiting"]
    assert not sleepers("71236")


def test_a_member_that_spawns_while_it_is_ended_does_not_escape() -> None:
    spawner = subprocess.Popen(["sh", "-c", "while :; do sleep 71237 & done"], start_new_session=True)
    time.sleep(0.2)
    assert ending.end_all(ending.of_session(spawner.pid)) == []
    assert not sleepers("71237")
    spawner.wait(PATIENCE_S)


def test_this_process_is_never_ended_from_here() -> None:
    assert not ending.end_all(lambda process: process.comm == "no such name")
    assert all(process.pid not in ending._ancestors() for process in ending.living(lambda _: True))


def test_the_doctors_listener_that_says_nothing_is_a_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trial, "LISTENER", "import time; time.sleep(71239)")
    monkeypatch.setattr(trial, "TIMEOUT_S", 0.5)
    verdict = trial.try_listener("/nowhere/criu", Commands(), str(tmp_path))
    assert verdict.state == "fail"
    assert "does not listen within 0.5 s" in verdict.detail
