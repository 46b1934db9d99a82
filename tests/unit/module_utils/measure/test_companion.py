# SPDX-License-Identifier: GPL-3.0-or-later
"""Companions of a restore, with real programs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.measure.companion import Companion
from ansible.module_utils.ckpt.system import procfs
from ansible.module_utils.ckpt.system.commands import Commands

# far more than anything here takes
PATIENCE_S = 60.0
Make = Callable[[str], Companion]


@pytest.fixture
def make() -> Iterator[Make]:
    """A companion that is a script of the shell; none is left."""
    made = []

    def companion(script: str) -> Companion:
        one = Companion(
            name="the helper",
            option="helper",
            argv=["sh", "-c", script],
            environment={"PATH": "/usr/bin:/bin"},
            absent=("bad_input", "correct it"),
            end_limit_s=PATIENCE_S,
        )
        made.append(one)
        return one

    yield companion
    assert all(one.end() for one in made)
    assert all(one.process is None or one.status() is not None for one in made)


def test_what_is_ready_is_told_and_has_its_last_words(make: Make) -> None:
    one, commands = make("echo first; echo ready 1; read name; echo got $name; echo enough >&2"), Commands()
    one.start(commands)
    one.wait_ready("ready", PATIENCE_S)
    assert one.status() is None
    one.tell("/a file")
    assert one.last_words() == ("first\nready 1\ngot /a file\n", "enough\n")
    assert one.status() == 0
    assert commands.actions == [one.argv]


@pytest.mark.parametrize("said", ["read", "ready", "already 1\\n", "\\n"])
def test_what_is_not_a_line_with_the_word_is_not_waited_for_without_end(make: Make, said: str) -> None:
    one = make(f"printf '{said}'; exec sleep 71238")
    one.start(Commands())
    with pytest.raises(CkptError, match=r"the helper was not ready within 0\.5 s.*leave helper out") as caught:
        one.wait_ready("ready", 0.5)
    assert caught.value.reason == "timeout"
    assert one.end()
    assert subprocess.run(["pgrep", "-f", "^sleep 71238$"], check=False).returncode == 1


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("echo failed no device", "cannot initialise the GPUs: no device;"),
        ("echo one >&2; echo two >&2; exit 3", "cannot initialise the GPUs: two;"),
        ("echo failed no device; echo noise >&2", "cannot initialise the GPUs: no device;"),
        ("exit 3", "it ended without a word"),
    ],
)
def test_one_that_ends_before_it_is_ready_says_why(make: Make, script: str, cause: str) -> None:
    one = make(script)
    one.start(Commands())
    with pytest.raises(CkptError, match=cause) as caught:
        one.wait_ready("ready", PATIENCE_S)
    assert caught.value.reason == "runtime_failed"


def test_one_that_died_is_told_without_an_error(make: Make) -> None:
    one = make("echo ready; exit 4")
    one.start(Commands())
    one.wait_ready("ready", PATIENCE_S)
    assert one.process is not None
    one.process.wait(PATIENCE_S)
    one.tell("/a file")
    assert one.last_words() == ("ready\n", "")
    assert one.status() == 4


def test_one_that_ignores_the_end_of_its_input_and_signals_is_killed(make: Make) -> None:
    one = make("trap '' TERM; echo ready; while :; do sleep 0.05; done")
    one.end_limit_s = 0.5
    one.start(Commands())
    one.wait_ready("ready", PATIENCE_S)
    assert one.end()
    assert one.status() == -9


def test_one_that_is_not_there_has_its_own_reason() -> None:
    one = Companion("the helper", "helper", ["/nonexistent/helper"], {}, ("criu_missing", "build it"), 0.5)
    with pytest.raises(
        CkptError, match=r"cannot be started \(No such file or directory\); build it, or leave"
    ) as caught:
        one.start(Commands())
    assert caught.value.reason == "criu_missing"
    assert one.end()


HOLD = """
import os, sys, time
import ansible.module_utils
ansible.module_utils.__path__.append(sys.argv[1])
from ansible.module_utils.ckpt.measure.companion import Companion
from ansible.module_utils.ckpt.system.commands import Commands
one = Companion("the helper", "helper", ["sh", "-c", "echo ready; cat"], dict(os.environ), ("bad_input", ""), 0.5)
one.start(Commands())
one.wait_ready("ready")
print(one.process.pid, flush=True)
time.sleep(600)
"""


def test_it_ends_with_a_module_that_is_killed(request: pytest.FixtureRequest) -> None:
    command = [sys.executable, "-c", HOLD, str(request.config.rootpath / "module_utils")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as module:
        assert module.stdout is not None
        pid = int(module.stdout.readline())
        module.kill()
    until = time.monotonic() + PATIENCE_S
    # where nobody collects orphans a zombie stays
    while (task := procfs.read_task(pid)) is not None and task.state != "Z":
        assert time.monotonic() < until
        time.sleep(0.01)
