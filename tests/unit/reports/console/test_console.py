# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys

import pexpect
import pytest
from rich.console import Console

from gpuckpt_console import console
from gpuckpt_console.progress import Progress
from gpuckpt_report import VERSION

SCHEDULE = [
    {"seq": 1, "lane": "cold", "iteration": 1, "warmup": True},
    {"seq": 2, "lane": "cold", "iteration": 1, "warmup": False},
    {"seq": 3, "lane": "podman-stock", "iteration": 1, "warmup": False},
    {"seq": 4, "lane": "podman-stock", "iteration": 2, "warmup": False},
]


def event(name, **data):
    return {"event": name, "event_data": data}


def ok(result, action="ckpt_restore"):
    return event("runner_on_ok", host="node1", res=result, task_action=action)


def measured(lane, seconds, outcome="as it was", **changes):
    record = {"kind": "cold" if lane == "cold" else "restore", "lane": lane, "status": "ok", "warmup": False}
    return ok({"record": record | {"t": {"T4": seconds}} | changes, "outcome": outcome, "changed": True})


@pytest.fixture
def benchmark():
    progress = Progress()
    progress.feed(ok({"ansible_facts": {"schedule": SCHEDULE, "other": [1, 2]}}, "ansible.builtin.set_fact"))
    progress.feed(measured("cold", 9.0, warmup=True))
    progress.feed(measured("cold", 2.0))
    progress.feed(measured("podman-stock", None, status="failed"))
    return progress


def test_lanes_are_counted_from_schedule_and_records(benchmark):
    host = benchmark.hosts["node1"]
    cold, stock = host.lanes["cold"], host.lanes["podman-stock"]
    assert (host.done, host.total) == (3, 4)
    assert (cold.done, cold.total, cold.failed, cold.median) == (1, 1, 0, 2.0)
    assert (stock.done, stock.total, stock.failed, stock.median) == (1, 2, 1, None)


def test_starts_that_are_no_entry_of_the_schedule_do_not_count(benchmark):
    assert benchmark.feed(measured("", 5.0)) == []
    assert benchmark.hosts["node1"].done == 3
    assert benchmark.hosts["node1"].lanes.keys() == {"cold", "podman-stock"}


def test_each_outcome_carries_the_count_and_other_messages_do_not(benchmark):
    assert benchmark.measuring
    assert benchmark.feed(measured("podman-stock", 0.5, "stock: 0.5 s")) == ["[node1 4/4] stock: 0.5 s"]
    assert not benchmark.measuring
    summary = ok({"msg": ["lane  median", "stock 0.5"]}, "ansible.builtin.debug")
    assert benchmark.feed(summary) == ["lane  median", "stock 0.5"]


def test_steering_tasks_are_not_logged():
    progress = Progress()
    start = event(
        "playbook_on_task_start", task="criu : Build CRIU", role="criu", task_action="ansible.builtin.command"
    )
    assert progress.feed(start) == ["  criu : Build CRIU"]
    assert progress.feed(event("playbook_on_task_start", task="x", task_action="ansible.builtin.include_tasks")) == []


def test_failures_are_logged_with_the_last_lines_of_stderr_unless_ignored():
    progress = Progress()
    progress.feed(event("playbook_on_task_start", task="Mount", task_action="mount"))
    failure = {"host": "node1", "res": {"msg": "no room", "stderr": "\n".join(f"line {n}" for n in range(9))}}
    lines = progress.feed(event("runner_on_failed", **failure))
    assert lines[0] == "  FAILED node1, Mount: no room"
    assert lines[1:] == [f"    line {n}" for n in range(4, 9)]
    assert progress.feed(event("runner_on_failed", ignore_errors=True, **failure)) == []
    failure["res"]["log_lines"] = ["Error (criu): the line that matters"]
    assert progress.feed(event("runner_on_failed", **failure))[1:] == ["    Error (criu): the line that matters"]


def test_recap_names_every_host():
    stats = event("playbook_on_stats", ok={"a": 3, "b": 1}, failures={"b": 1}, dark={"c": 1})
    assert Progress().feed(stats) == [
        "a: ok 3, changed 0, failed 0, unreachable 0, rescued 0",
        "b: ok 1, changed 0, failed 1, unreachable 0, rescued 0",
        "c: ok 0, changed 0, failed 0, unreachable 1, rescued 0",
    ]


def test_terminal_shows_log_and_table(benchmark, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")  # on a dumb one there is no table
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with console._view(terminal, benchmark) as show:
        show(["PLAY one", "  FAILED node1, x [y]: z"])
    text = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", screen.getvalue())
    assert "FAILED node1, x [y]: z" in text
    assert "node1: 3 of 4" in text
    assert re.search(r"cold\s+1/1\s+0\s+2\.00\s+2\.00", text)


def test_unknown_word_and_usage(capsys):
    with pytest.raises(SystemExit) as refused:
        console.main(["brew"])
    assert refused.value.code == console.EXIT_USAGE
    assert "invalid choice: 'brew'" in capsys.readouterr().err
    assert console.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "plays: bench, " in said
    assert "history" in said


def test_commands_on_results_are_the_same_program(fake_run, capsys):
    run = fake_run(finished_at=None)
    options = ["--runs", str(run.path.parent)]
    for command in (["runs"], ["show", "latest"], ["summary", "latest"], ["history", "cold"]):
        assert console.main([*options, *command]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(len(line) for line in lines if not line.startswith("report: ")) <= 80
        assert console.main([*options, *command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
    assert console.main([*options, "export", "latest", "--format", "jsonl"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(run.records())
    assert console.main([*options, "history", "nothing"]) == 1
    assert "has a lane 'nothing'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        console.main(["--version"])
    assert capsys.readouterr().out == f"gpuckpt {VERSION}\n"


def test_a_run_that_cannot_be_read_is_listed_with_the_reason(fake_run, capsys):
    run = fake_run()
    run.records_path.write_text("{}\n")
    assert console.main(["--runs", str(run.path.parent), "runs", "--json"]) == 0
    assert "unreadable: " in json.loads(capsys.readouterr().out)[0]["state"]


def test_a_continued_run_counts_from_where_it_was_and_tells_the_time_left():
    moments = iter([100.0, 130.0])
    progress = Progress(clock=lambda: next(moments))
    facts = {"left": SCHEDULE[2:], "whole": SCHEDULE}
    progress.feed(ok({"ansible_facts": facts}, "ansible.builtin.set_fact"))
    host = progress.hosts["node1"]
    assert (host.done, host.total, host.lanes["cold"].done, host.lanes["podman-stock"].done) == (2, 4, 1, 0)
    assert host.left_s is None
    assert progress.feed(measured("podman-stock", 0.5, "stock")) == ["[node1 3/4] stock"]
    host.total = 6
    progress.feed(measured("podman-stock", 0.5, "stock"))
    assert host.left_s == pytest.approx(60.0)
    screen = io.StringIO()
    Console(file=screen, width=80).print(console._host_table("node1", host))
    assert "node1: 4 of 6, about 1 min 0 s left" in screen.getvalue()


def test_the_bill_is_part_of_the_time_left_and_told_as_it_comes():
    moments = iter([100.0, 130.0])
    progress = Progress(clock=lambda: next(moments))
    progress.feed(ok({"ansible_facts": {"whole": SCHEDULE[2:]}}, "ansible.builtin.set_fact"))
    entry = {"seq": 9, "lane": "podman-stock", "iteration": 1, "warmup": True}
    bill = [
        {**entry, "iteration": number, "moments": [{"at_s": 0.0, "seq": 5}, {"at_s": 60.0, "seq": 6}]}
        for number in (1, 2)
    ]
    progress.feed(ok({"ansible_facts": {"bill": bill}}, "ansible.builtin.set_fact"))
    progress.feed(measured("podman-stock", 0.5, "stock"))
    progress.feed(measured("podman-stock", 0.5, "stock"))
    host = progress.hosts["node1"]
    assert (host.done, host.total) == (2, 2)
    assert progress.measuring
    assert host.left_s == pytest.approx(2 * (30 + 60))

    def billed(kind, number, asked_s, status="ok"):
        record = {"kind": kind, "lane": "podman-stock", "iteration": number, "status": status, "t": {}}
        record |= {"warmup": kind != "probe", "bill": {"started": "restore", "asked_s": asked_s}}
        event = ok({"record": record, "outcome": f"{kind} told"})
        return progress.feed(event if kind != "probe" else {**event, "event": "runner_item_on_ok"})

    assert billed("restore", 1, None) == ["[node1 bill, 2 left] restore told"]
    assert billed("probe", 1, 0.0) == ["[node1 bill, 2 left] probe told"]
    assert billed("probe", 1, 60.0) == ["[node1 bill, 1 left] probe told"]
    assert billed("restore", 2, None, "failed") == ["[node1 bill, 0 left] restore told"]
    assert (host.left_s, progress.measuring) == (0.0, False)
    assert host.lanes["podman-stock"].done == 2, "the bill is not an iteration"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one real play, so that ansible-runner and ansible-playbook really run."""
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "ansible.cfg").write_text("[defaults]\nlocalhost_warning = False\n")
    (tmp_path / "hello.yml").write_text("- import_playbook: playbooks/hello.yml\n")
    (tmp_path / "playbooks" / "hello.yml").write_text(
        """
- name: Greet
  hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Say it
      ansible.builtin.debug:
        msg: "hello {{ who }}"
    - name: Stop
      ansible.builtin.fail:
        msg: enough
      when: who == 'nobody'
"""
    )
    (tmp_path / "again.yml").write_text("- import_playbook: playbooks/again.yml\n")
    (tmp_path / "playbooks" / "again.yml").write_text(
        """
- name: Greet again
  hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Say it again
      ansible.builtin.debug:
        msg: "again, {{ who }}, {{ lookup('ansible.builtin.env', 'PYTHONUNBUFFERED') or 'buffered' }}"
"""
    )
    monkeypatch.setattr(console, "PROJECT", tmp_path)
    monkeypatch.setattr(console, "RUNNER_FILES", tmp_path / ".ansible" / "runner")
    return tmp_path


@pytest.mark.parametrize(("who", "status"), [("big world", 0), ("nobody", 2)])
def test_a_real_play_runs_and_its_status_comes_back(project, capfd, monkeypatch, who, status):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert console.main(["hello", "-e", f'{{"who": "{who}"}}']) == status
    output = capfd.readouterr().out
    assert f"hello {who}" in output
    assert ("FAILED localhost, Stop: enough" in output) == bool(status)
    kept = [path for path in (project / ".ansible").rglob("*") if path.is_file()]
    assert any(path.name == "stdout" for path in kept)
    assert not any("hf_secret" in path.read_text() for path in kept)


def test_why_no_play_began_is_shown(project, capfd):
    assert console.main(["hello", "-i", "nohost,", "-l", "other", "-e", "who=nobody"]) == 1
    output = capfd.readouterr().out
    assert "[WARNING]: Could not match supplied host pattern, ignoring: other" in output
    assert "[ERROR]: Specified inventory, host pattern and/or --limit leaves us with no hosts to target." in output


def test_a_failed_task_is_told_once(project, capfd):
    assert console.main(["hello", "-e", "who=nobody"]) == 2
    assert capfd.readouterr().out.count("enough") == 1


@pytest.mark.parametrize(("who", "both"), [("big world", True), ("nobody", False)])
def test_plays_run_one_after_another_until_one_fails(project, capfd, monkeypatch, who, both):
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    assert (console.main(["hello", "again", "-e", f'{{"who": "{who}"}}']) == 0) == both
    output = capfd.readouterr().out
    assert f"hello {who}" in output
    assert (f"again, {who}, buffered" in output) == both


def test_a_wrong_second_play_is_refused_before_the_first_runs(project, capfd):
    assert console.main(["hello", "agian", "-e", "who=me"]) == console.EXIT_USAGE
    said = capfd.readouterr()
    assert "there is no play 'agian'; plays: again, hello" in said.err
    assert "hello me" not in said.out


RUN_CONSOLE = """
import sys
from pathlib import Path
from gpuckpt_console import console
console.PROJECT = Path(sys.argv[1])
console.RUNNER_FILES = console.PROJECT / ".ansible" / "runner"
sys.exit(console.main(sys.argv[2:]))
"""
WAIT = """
- name: Wait
  hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - name: Order what is to be measured
      ansible.builtin.set_fact:
        schedule: [{seq: 1, lane: cold, iteration: 1, warmup: false}]
      when: measuring
    - name: Say that it begins
      ansible.builtin.debug:
        msg: waiting
    - name: Measure until the stop file is there
      ansible.builtin.command:
        argv: [sh, -c, 'for i in $(seq 300); do if [ -e "$0" ]; then exit 0; fi; sleep 0.1; done; exit 1', "{{ file }}"]
      vars:
        file: "{{ lookup('ansible.builtin.env', 'GPUCKPT_STOP_FILE') if heeding else '/nonexistent' }}"
    - name: Say that it ended
      ansible.builtin.debug:
        msg: ended in order
"""


@pytest.mark.parametrize(
    ("measuring", "heeding", "signals", "in_order"),
    [
        (True, True, [signal.SIGINT], True),
        (True, True, [signal.SIGTERM], True),
        (True, False, [signal.SIGINT, signal.SIGINT], False),
        (False, False, [signal.SIGINT], False),
    ],
)
def test_an_interrupt_lets_a_measurement_end_and_a_second_one_does_not(project, measuring, heeding, signals, in_order):
    (project / "wait.yml").write_text("- import_playbook: playbooks/wait.yml\n")
    (project / "playbooks" / "wait.yml").write_text(WAIT)
    settings = json.dumps({"measuring": measuring, "heeding": heeding})
    command = [sys.executable, "-u", "-c", RUN_CONSOLE, str(project), "wait", "-e", settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for word, number in zip(["waiting", "interrupted: "], signals, strict=False):
            for line in process.stdout:
                lines.append(line)
                if line.startswith(word):
                    break
            process.send_signal(number)
        lines += process.stdout.readlines()
        assert process.wait(timeout=20) == console.EXIT_INTERRUPTED
    said = "".join(lines)
    assert ("ended in order" in said) == in_order
    assert ("interrupted: what is being measured ends" in said) == measuring
    assert ("a server may still run" in said) == (not in_order)
    assert list((project / ".ansible" / "runner").glob("stop-*")) == []


def on_a_terminal(project, *arguments, **environment):
    """``gpuckpt`` on a terminal of its own."""
    command = ["-u", "-c", RUN_CONSOLE, str(project), *arguments]
    return pexpect.spawn(sys.executable, command, encoding="utf-8", timeout=60, env={**os.environ, **environment})


@pytest.mark.parametrize(("option", "prompt"), [("-K", "BECOME password: "), ("--ask-vault-pass", "Vault password: ")])
def test_ansible_asks_for_a_password_on_the_terminal_which_does_not_echo_it(project, option, prompt):
    child = on_a_terminal(project, "hello", option, "-e", "who=me")
    child.expect_exact(prompt)
    child.sendline("not-for-the-screen")
    child.expect(pexpect.EOF)
    child.close()
    assert "hello me" in child.before
    assert "not-for-the-screen" not in child.before
    assert child.exitstatus == 0


@pytest.mark.parametrize(
    ("option", "asks"),
    [
        ("-K", True),
        ("-bK", True),
        ("-vkK", True),
        ("--ask-pass", True),
        ("prod@prompt", True),
        ("-b", False),
        ("-C", False),
    ],
)
def test_options_that_ask_are_known(option, asks):
    assert console._asks(["-v", option]) == asks


@pytest.mark.parametrize("name", ["C", "xx_YY.UTF-8"])
def test_a_locale_that_is_no_utf8_or_does_not_exist_stops_nothing(project, name):
    child = on_a_terminal(project, "hello", "-e", "who=me", LC_ALL=name, LANG=name)
    child.expect_exact("hello me")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_a_home_that_cannot_be_written_stops_nothing(project, capfd, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nowhere")
    assert console.main(["hello", "-e", "who=me"]) == 0
    assert "hello me" in capfd.readouterr().out


def test_why_ansible_refused_its_options_is_shown(project, capfd):
    assert console.main(["hello", "--no-such-option"]) == 2
    assert "unrecognized arguments: --no-such-option" in capfd.readouterr().out


def test_files_are_named_from_the_current_folder(project, capfd, tmp_path_factory, monkeypatch):
    here = tmp_path_factory.mktemp("here")
    (here / "mine.yml").write_text("all: {hosts: {localhost: {ansible_connection: local}}}")
    (here / "who.json").write_text('{"who": "there"}')
    (here / "who=x").touch()
    monkeypatch.chdir(here)
    assert console.main(["hello", "-i", "mine.yml", "-e", "@who.json"]) == 0
    assert "hello there" in capfd.readouterr().out
    assert console._from_here(["-imine.yml", "--inventory=mine.yml", "-e", "who=x", "-i", "host,"]) == [
        f"-i{here}/mine.yml",
        f"--inventory={here}/mine.yml",
        "-e",
        "who=x",
        "-i",
        "host,",
    ]


WITHOUT_METADATA = """
import importlib.metadata, runpy
def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.distribution = missing
runpy.run_module("gpuckpt_report", run_name="__main__", alter_sys=True)
"""


def test_the_report_needs_no_installed_package():
    """A controller that was made from a bundle sees the sources alone, without what an installation knows of them."""
    command = [sys.executable, "-c", WITHOUT_METADATA, "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout == f"gpuckpt {VERSION}\n"
