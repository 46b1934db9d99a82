# SPDX-License-Identifier: GPL-3.0-or-later
"""The runner of the checks: what it lets run side by side, and what it says at the end."""

import importlib
import importlib.util
import re
import sys
import time

import pytest
from project import ROOT


@pytest.fixture
def checks(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("checks", ROOT / ".ci" / "checks.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "checks", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "LOGS", tmp_path)
    return module


def command(*lines):
    return sys.executable, "-c", "\n".join(lines)


def note(folder, name):
    """A command that notes when it began and ended."""
    return command(
        "import time",
        "began = time.monotonic()",
        "time.sleep(0.3)",
        f"open({str(folder / name)!r}, 'w').write(f'{{began}} {{time.monotonic()}}')",
    )


def spans(folder, *names):
    return [tuple(map(float, (folder / name).read_text().split())) for name in names]


def test_what_shares_a_resource_takes_turns_and_the_rest_runs_meanwhile(checks, tmp_path):
    make = checks.Check
    outcomes = checks.run_all(
        [
            make("a", "g", note(tmp_path, "a.t"), frozenset({"host"}), tmp_path),
            make("b", "g", note(tmp_path, "b.t"), frozenset({"host", "containers"}), tmp_path),
            make("c", "g", note(tmp_path, "c.t"), frozenset(), tmp_path),
        ],
        workers=2,
    )
    assert [outcome.state for outcome in outcomes] == ["ok"] * 3
    a, b, c = spans(tmp_path, "a.t", "b.t", "c.t")
    assert b[0] >= a[1] or a[0] >= b[1]
    assert c[0] < a[1]


def test_what_takes_the_result_of_another_waits_for_it_and_lets_the_rest_pass(checks, tmp_path):
    make = checks.Check
    names = [("taker", "maker"), ("maker", ""), ("other", ""), ("alone", "not chosen")]
    checks.run_all([make(name, "g", note(tmp_path, name), after=after) for name, after in names], workers=2)
    taker, maker, other = spans(tmp_path, "taker", "maker", "other")
    assert taker[0] >= maker[1]
    assert other[0] < maker[1]
    assert (tmp_path / "alone").exists()


def test_the_time_of_a_processor_is_told_with_that_of_children(checks, tmp_path, capsys):
    busy = command("import subprocess, sys", "subprocess.run([sys.executable, '-c', 'sum(range(30_000_000))'])")
    outcome = checks.run(checks.Check("x", "g", busy, cwd=tmp_path))
    assert outcome.processor_s > 0.1
    checks.summary([outcome], 1.0)
    assert f"{outcome.seconds:6.0f} s {outcome.processor_s:6.0f} s" in capsys.readouterr().out


def test_what_python_compiles_is_kept_for_the_next_check(checks, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    keeps = command("import sys", "sys.exit(sys.dont_write_bytecode)")
    assert checks.run(checks.Check("x", "g", keeps, cwd=tmp_path)).state == "ok"


@pytest.mark.parametrize(
    ("argv", "state", "detail"),
    [
        (("true",), "ok", ""),
        (("false",), "failed", ""),
        (command("import sys", "print('no GPU here')", "sys.exit(77)"), "skipped", "no GPU here"),
    ],
)
def test_the_exit_status_decides(checks, tmp_path, argv, state, detail):
    outcome = checks.run(checks.Check("x", "g", argv, cwd=tmp_path))
    assert (outcome.state, outcome.detail) == (state, detail)


def test_the_summary_tells_why_single_tests_were_skipped(checks, tmp_path, capsys):
    line = "SKIPPED [1] tests/unit/test_x.py:3: PostgreSQL's server is not installed"
    outcome = checks.run(checks.Check("x", "g", command(f"print({line!r})"), cwd=tmp_path))
    checks.summary([outcome], 1.0)
    assert f"      {line}\n" in capsys.readouterr().out


def test_a_check_that_hangs_is_ended_with_what_it_started(checks, tmp_path):
    started = time.monotonic()
    outcome = checks.run(checks.Check("x", "g", ("sh", "-c", "sleep 60 & wait"), cwd=tmp_path, limit_s=1))
    assert outcome.state == "failed"
    assert time.monotonic() - started < 10
    assert "ended after 1 s" in (tmp_path / "x.log").read_text()


def test_the_summary_counts_in_one_line(checks, capsys):
    make = checks.Check
    states = ["ok", "ok", "failed", "skipped"]
    checks.summary([checks.Outcome(make(str(i), "g", ()), state, 1.0) for i, state in enumerate(states)], 4.0)
    assert capsys.readouterr().out.splitlines()[-1] == "2 passed, 1 failed, 1 skipped"


def test_an_unknown_name_lists_the_known_ones(checks, monkeypatch):
    monkeypatch.setattr(checks, "ROOT", ROOT)
    with pytest.raises(SystemExit, match=r"no such check: linty\. There are: .*lint"):
        checks.select(["linty"])


def test_a_long_run_has_the_same_checks_and_leaves_nothing_out_of_them(checks, monkeypatch):
    monkeypatch.setattr(checks, "ROOT", ROOT)
    short, whole = checks.all_checks(), checks.all_checks(long=True)
    assert [check.name for check in short] == [check.name for check in whole]
    shorter = {check.name for check, all_of_it in zip(short, whole) if check.argv != all_of_it.argv}
    assert {"integration", "integration-modules", "integration-copies", "molecule-criu"} <= shorter
    left_out = ("not long", "molecule/ci.yml", checks.TELLING_FAULTS)
    played = [check for check in whole if check.group in ("integration", "molecule")]
    assert not [word for check in played for word in check.argv for what in left_out if what in word]


def test_ci_tries_each_fault_that_needs_no_chance(checks, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "faults"))
    kinds = [name for name, *_ in importlib.import_module("kinds").all_kinds()]
    certain = {name for name in kinds if re.search(checks.CERTAIN_FAULTS, name)}
    tried = {name for name in certain if re.search(checks.TELLING_FAULTS, name)}

    def faults(names):
        return {re.sub("-(process|podman)(-stock|-patched)?$", "", name) for name in names}

    assert faults(tried) == faults(certain)
    assert {runtime for runtime in ("process", "podman") for name in tried if runtime in name} == {"process", "podman"}
