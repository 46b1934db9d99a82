# SPDX-License-Identifier: GPL-3.0-or-later
"""What the linter of prose finds in Markdown, and what it leaves alone."""

import importlib.util
import sys

import pytest
from project import ROOT

WIDE = "word " * 22 + "end."  # 114 columns, 23 words
LONG = " ".join(["word"] * 26) + "."


@pytest.fixture(scope="module")
def prose():
    spec = importlib.util.spec_from_file_location("prose", ROOT / ".ci" / "prose.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["prose"] = module  # its dataclass looks there for its own annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules["prose"]


def found(prose, text):
    return [(finding.line, finding.message.split(":")[0]) for finding in prose.findings(text)]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (f"# Title\n\n{WIDE}\n", (3, "114 columns, at most 110")),
        (f"- {WIDE}\n", (1, "116 columns, at most 110")),
        ("They mended it.\n", (1, '"mended"')),
        ("Short lines,\nand beside them\nmore.\n", (1, '"beside"')),
        ("It is none.\n", (1, '"is none"')),
        ("| a |\n|---|\n| beside b |\n", (3, '"beside"')),
        (
            f"First.\n\n{LONG.replace('word word', 'word' + chr(10) + 'word', 1)}\n",
            (3, "a sentence of 26 words, at most 25"),
        ),
        (f"A short one. {LONG[:-1]}\n", (1, "a sentence of 26 words, at most 25")),
    ],
)
def test_what_is_wrong_is_named_with_its_line(prose, text, finding):
    wide = [one for one in found(prose, text) if "columns" in one[1]] if "columns" in finding[1] else None
    assert finding in (wide if wide is not None else found(prose, text))


@pytest.mark.parametrize(
    "text",
    [
        f"    {WIDE}\n",
        f"```\n{WIDE} beside, mend\n```\n",
        f"| {WIDE} | {LONG} |\n|---|---|\n| {WIDE} | {LONG} |\n",
        f"[report](https://example.org/{'x' * 100})\n",
        f"See https://example.org/{'x' * 100} for it.\n",
        "`beside` and `mend` are options. The mode is `none`.\n",
        "It recommends amendments, and has none.\n",
        f"One. {'Two words. ' * 8}\n",
        f"A `{'x ' * 30}` is one word of it.\n",
        f"<!-- headline:begin a -->\n{WIDE} beside {LONG}\n<!-- headline:end -->\n",
    ],
)
def test_code_tables_addresses_and_what_a_program_wrote_are_left_alone(prose, text):
    assert found(prose, text) == []


def test_lines_count_from_one_below_what_a_program_wrote(prose):
    text = "<!-- table:begin -->\n\n| a |\n\n<!-- table:end -->\n\nIt is none.\n"
    assert found(prose, text) == [(7, '"is none"')]


def test_the_exit_status_tells_whether_something_was_found(prose, tmp_path, capsys):
    (tmp_path / "good.md").write_text("Good.\n")
    (tmp_path / "bad.md").write_text("Mend it.\n")
    assert prose.main([str(tmp_path / "good.md")]) == 0
    assert prose.main([str(tmp_path / "good.md"), str(tmp_path / "bad.md")]) == 1
    assert capsys.readouterr().out == f'{tmp_path / "bad.md"}:1: "Mend": write fix\n'
