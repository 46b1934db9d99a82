# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock of a node, and the settings that count while their module lives. Processes, files and the front are real."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.criu.choice import Criu, parse_criu
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.safety import claim, locks
from ansible.module_utils.ckpt.safety.locks import Holder, exclusive, lane_settings


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "gpuckpt" / "lock"
    monkeypatch.setattr(locks, "LOCK_FILE", str(path))
    monkeypatch.setattr(locks, "LANE_ENV_FILE", str(path.parent / "criu.env"))
    return path


def shown(front: Path) -> dict[str, str]:
    done = subprocess.run([front], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True)
    return {name: value for name, _, value in (line.partition("=") for line in done.stdout.splitlines())}


def test_lane_settings_count_only_within(front: Path, tmp_path: Path) -> None:
    criu = Criu("stock", {"CRIU_MAPPED_RESTORE": "1"}, home=f"{tmp_path}/gpuckpt/criu")
    with lane_settings(criu):
        assert Path(locks.LANE_ENV_FILE).stat().st_mode & 0o777 == 0o600
        seen = shown(front)
        assert (seen["BUILD"], seen["CRIU_MAPPED_RESTORE"]) == ("stock", "1")
    assert not Path(locks.LANE_ENV_FILE).exists()
    assert shown(front)["BUILD"] == "current"


def test_overrides_of_a_module_that_is_gone_do_not_count(front: Path) -> None:
    overrides = Path(locks.LANE_ENV_FILE)
    sleeper = subprocess.Popen(["sleep", "60"])
    start = locks.procfs.read_task(sleeper.pid).starttime
    boot = locks.boot_id()
    named = f"holder={sleeper.pid} {start} {boot}"
    try:
        for first, build in (
            (named, "stock"),
            (f"holder={sleeper.pid} {start + 1} {boot}", "current"),
            (f"holder={sleeper.pid} {start} another-boot", "current"),
            ("holder=", "current"),
            ("holder=self 1 2", "current"),
            ("", "current"),
        ):
            overrides.write_text(f"{first}\nGPUCKPT_CRIU_BUILD=stock\n", encoding="utf-8")
            assert shown(front)["BUILD"] == build, first
        overrides.write_text(f"{named}\nGPUCKPT_CRIU_BUILD=stock\n", encoding="utf-8")
        sleeper.kill()
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
        assert shown(front)["BUILD"] == "current", "a zombie lives no more"
    finally:
        sleeper.kill()
        sleeper.wait()


def test_settings_are_read_and_never_executed(front: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    (tmp_path / "etc" / "criu.env").write_text(
        f"# a comment\ntouch {trap}\nCRIU_A=$(touch {trap})\nCRIU_B='1;touch {trap}'\nPATH={tmp_path}\nLD_PRELOAD=x\n"
        "CRIU_QUOTED='on'\nCRIU_LAST=7",
        encoding="utf-8",
    )
    seen = shown(front)
    assert not trap.exists()
    assert (seen["CRIU_QUOTED"], seen["CRIU_LAST"]) == ("on", "7")
    assert not {"CRIU_A", "CRIU_B", "LD_PRELOAD"} & set(seen)
    assert seen["PATH"] != str(tmp_path)


@pytest.mark.parametrize("place", ["etc/criu.env", "gpuckpt/criu.env"])
def test_standard_streams_stay_while_settings_are_read(front: Path, tmp_path: Path, place: str) -> None:
    """runc looks up where they lead at any moment of the front's life, and a restore fails if one is missing."""
    settings = tmp_path / place
    settings.parent.mkdir(exist_ok=True)
    os.mkfifo(settings)
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([front], env={"PATH": os.environ["PATH"]}, **streams) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        expected = [
            "/dev/null",
            *(os.readlink(f"/proc/self/fd/{pipe.fileno()}") for pipe in (process.stdout, process.stderr)),
        ]
        with settings.open("w", encoding="ascii") as writer:
            # more than the pipe holds: once all is written, the front is reading
            held = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 12)
            writer.write("#" * (2 * held))
            writer.flush()
            assert [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)] == expected
        process.communicate()


@pytest.mark.parametrize(
    "raw",
    [
        {"switches": {"CRIU_A\n": "1"}},
        {"switches": {"CRIU_A": "1\n"}},
        {"switches": {"CRIU_A": "1\nLD_PRELOAD=x"}},
        {"home": "/opt/x\n"},
        {"home": "/opt/$(id)"},
        {"home": "relative"},
    ],
)
def test_nothing_that_ends_a_line_reaches_the_settings(raw: dict[str, object]) -> None:
    with pytest.raises(CkptError, match="the option criu is wrong"):
        parse_criu(raw)


def test_the_lock_is_for_its_owner_alone(lock: Path) -> None:
    with exclusive():
        assert (lock.stat().st_mode & 0o777, lock.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    lock.chmod(0o644)
    lock.parent.chmod(0o755)
    # somebody opened it while that was possible, and holds it
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with exclusive(limit_s=5):
            assert (lock.stat().st_mode & 0o777, lock.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_link_in_its_place_is_refused(lock: Path, tmp_path: Path) -> None:
    lock.parent.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("data", encoding="utf-8")
    lock.symlink_to(precious)
    with pytest.raises(CkptError, match="remove it"), exclusive():
        raise AssertionError("the lock was taken")
    assert precious.read_text(encoding="utf-8") == "data"


def test_who_waits_in_vain_is_told_for_whom() -> None:
    with exclusive("ckpt_restore", "run-7"):
        with pytest.raises(CkptError) as refused, exclusive(limit_s=0.2):
            raise AssertionError("two had the lock")
        assert refused.value.reason == "timeout"
        assert f"ckpt_restore of the run run-7 (process {os.getpid()})" in refused.value.message
        held = locks.holder()
        assert held is not None
        assert held.lives()
    assert locks.holder() is None


def test_a_claim_that_is_held_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "claim"
    monkeypatch.setattr(claim, "CLAIM_FILE", str(path))
    monkeypatch.setattr(claim, "CLAIM_TIMEOUT_S", 0.2)
    descriptor = locks.open_private(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(CkptError, match="fuser"):
        claim.guard("run")
    os.close(descriptor)


def test_a_lock_that_was_replaced_while_one_waited_is_taken_anew(lock: Path) -> None:
    taken = threading.Event()

    def wait_for_it() -> None:
        with exclusive(limit_s=60):
            taken.set()

    with exclusive():
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        while len(descriptors_of(lock)) < 2:
            time.sleep(0.01)
        lock.rename(lock.with_name("former"))
        # by another one, which has the node now
        descriptor = locks.open_private(str(lock))
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    waiting.join(0.5)
    assert not taken.is_set(), "the old file was taken for the lock"
    os.close(descriptor)
    waiting.join(60)
    assert taken.is_set()


def descriptors_of(path: Path) -> list[str]:
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return [link for link in links if os.path.exists(link) and os.path.samefile(link, path)]


def test_what_a_killed_holder_left_is_taken_back(lock: Path, tmp_path: Path) -> None:
    copy = tmp_path / "golden" / "expendable"
    copy.mkdir(parents=True)

    def be_killed() -> None:
        with exclusive("ckpt_restore", None, str(copy.parent)), lane_settings(Criu()):
            os.kill(os.getpid(), 9)

    child = multiprocessing.get_context("fork").Process(target=be_killed)
    child.start()
    child.join()
    left = locks.holder()
    assert isinstance(left, Holder)
    assert not left.lives()
    with exclusive():
        assert not copy.exists()
        assert not Path(locks.LANE_ENV_FILE).exists()
