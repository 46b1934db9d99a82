# SPDX-License-Identifier: GPL-3.0-or-later
"""A role's README is made of its argument specification."""

import importlib.util

import pytest
from project import ROOT

SPECIFICATION = """
argument_specs:
  main:
    short_description: Does one thing
    options: &options
      thing_size:
        type: str
        choices: [small, large]
        default: "{{ other | default('a|b') }}"
        description: How much C(memory) it takes, V(small) by default.
      thing_limits:
        type: dict
        description: [First., Second.]
        options:
          memory:
            type: int
            required: true
            description: In MiB.
      thing_rules:
        type: list
        elements: str
        description:
          - What is allowed, at least one.
          - The first kind is C(a b), and it is a description that is long enough to be told below the table, since a
            cell of that length cannot be read.
          - "The second kind is like it: it goes on and on, and says what the first has said already, in other words."
          - The third kind is short.
  verify:
    short_description: Looks at it
    options: *options
  rollback:
    short_description: Takes it back
    options:
      thing_force: {type: bool, default: false, description: Even if in use.}
"""


@pytest.fixture
def readmes(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("role_readmes", ROOT / ".ci" / "role_readmes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    role = tmp_path / "roles" / "thing"
    for name, text in {"meta/argument_specs.yml": SPECIFICATION, "tasks/main.yml": "---\n"}.items():
        (role / name).parent.mkdir(parents=True)
        (role / name).write_text(text)
    return module


def test_options_become_rows_and_equal_entry_points_are_not_repeated(readmes, tmp_path):
    lines = readmes.readme(tmp_path / "roles" / "thing").splitlines()
    assert (
        "| `thing_size` | str: small, large | `\"{{ other \\| default('a\\|b') }}\"` | How much `memory` it takes, `small` by default. |"
        in lines
    )
    assert "| `thing_limits` | dict |  | First. Second. |" in lines
    assert "| `thing_limits.memory` | int | required | In MiB. |" in lines
    assert [line for line in lines if line.startswith("## ")] == ["## Variables", "## Entry point `rollback`"]


def test_a_long_description_stands_below_the_table_in_lines_of_its_own(readmes, tmp_path):
    text = readmes.readme(tmp_path / "roles" / "thing")
    assert "| `thing_rules` | list of str |  | What is allowed, at least one. More below. |\n\n`thing_rules`:\n" in text
    below = text.split("`thing_rules`:\n\n")[1].split("\n\n")[0].splitlines()
    assert below[0].startswith("- The first kind is `a b`, and it is ")
    assert below[1].startswith("  "), "the second line of an item is indented"
    assert below[-1] == "- The third kind is short."
    assert max(map(len, below)) <= readmes.COLUMNS


def test_drift_is_named_and_fixed(readmes, tmp_path, capsys):
    assert readmes.main(check=True) == 1
    assert "roles/thing/README.md" in capsys.readouterr().out
    assert readmes.main(check=False) == 0
    assert readmes.main(check=True) == 0


def test_a_role_without_specification_is_refused(readmes, tmp_path):
    (tmp_path / "roles" / "thing" / "meta" / "argument_specs.yml").unlink()
    with pytest.raises(SystemExit, match=r"roles/thing: no meta/argument_specs\.yml"):
        readmes.main(check=True)
