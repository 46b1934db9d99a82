# SPDX-License-Identifier: GPL-3.0-or-later
"""What the linter of prose finds in Markdown, comments and docstrings, and what it leaves alone."""

import importlib.util
import sys
from types import ModuleType

import pytest
from project import ROOT

WIDE = "word " * 22 + "end."  # 114 columns, 23 words
LONG = " ".join(["word"] * 26) + "."


@pytest.fixture(scope="module")
def prose():
    """The linter, with the modules that lie next to it."""
    loaded = {}
    for name in ("comments", "docstrings", "prose"):
        spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
        loaded[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded[name])
    yield loaded["prose"]
    for name in loaded:
        del sys.modules[name]


def found(prose: ModuleType, text: str, name: str = "page.md") -> list[tuple[int, str]]:
    return [(finding.line, finding.message.split(":")[0]) for finding in prose.findings(name, text)]


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
        "It recommends amendments, and has none. Where there is none, it is made.\n",
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


TOO_LONG = "a sentence of 26 words, at most 25"


@pytest.mark.parametrize(
    ("name", "text", "finding"),
    [
        ("a.py", '"""It is none."""\n', (1, '"is none"')),
        ("a.py", 'x = 1\n\n\ndef f():\n    """One.\n\n    It lies\n    beside it.\n    """\n', (7, '"beside"')),
        ("a.py", f'"""One.\n\n{LONG}\n"""\n', (3, TOO_LONG)),
        ("a.py", "x = 1  # beside\n", (1, '"beside"')),
        ("a.py", f"# {LONG[:60].strip()}\n# {LONG[60:].strip()}\n", (1, TOO_LONG)),
        ("a.py", 'raise E(f"it lies beside {x}")\n', (1, '"beside"')),
        ("a.py", f'DOCUMENTATION = """\n---\ndescription:\n  - One.\n  - {LONG}\n"""\n', (5, TOO_LONG)),
        ("a.c", "int x; /* beside */\n", (1, '"beside"')),
        ("a.h", f'char *s = "/*";\n\n/*\n * One.\n *\n * {LONG}\n */\n', (6, TOO_LONG)),
        ("a.c", "// mended\n", (1, '"mended"')),
        ("a.sh", "#!/bin/sh\n\n# beside\n", (3, '"beside"')),
        ("front", "# beside\n", (1, '"beside"')),
        ("a.yml", "msg: >-\n  {{ 'It lies beside ' ~ x }}\n", (1, '"beside"')),
        ("a.yml", f"---\n# One.\nx: 1\noptions:\n  y:\n    description: {LONG}\n", (6, TOO_LONG)),
    ],
)
def test_source_files_are_read_for_their_prose(prose, name, text, finding):
    assert found(prose, text, name) == [finding]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", f'"""One.\n\n    beside is an example {LONG}\n\nOne: `beside`, and ``mend``.\n"""\n'),
        ("a.py", f'"""One.\n\nUsage:\n  beside {LONG}\n"""\n'),
        ("a.py", "beside = 1\nassert beside is None\n"),
        ("a.py", '"""Or None, where it is None."""\n'),
        ("a.py", f'x = """{LONG}"""\n'),  # a message or data: its sentences are not counted
        ("tests/a.py", 'x = "one beside another"\n'),
        ("a.py", f"# SPDX-License-Identifier: MIT\n# {LONG.removeprefix('word ')}\n"),
        ("a.py", f"x = 1  # {LONG[:60]}\ny = 2  # {LONG[60:]}\n"),
        ("a.py", f"# {LONG[:60]}\n#\n# {LONG[60:]}\n"),
        ("a.py", f"# - {LONG[:60]}\n# - {LONG[60:]}\n"),
        ("a.c", 'char *s = "/* beside */";\nchar c = \'"\';\nint beside;\n'),
        ("a.c", f"/*\n * One:\n *   beside {LONG}\n */\n"),
        ("a.yml", "when: x is none\ndescription: V(none) is C(beside).\n"),
        ("a.yml", "a: &a\n  description: One.\nb: *a\n"),
    ],
)
def test_code_examples_and_data_are_left_alone(prose, name, text):
    assert found(prose, text, name) == []


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('def f():\n    """Return one."""\n', 2, '"Returns …"'),
        ('async def f():\n    """Try one."""\n', 2, '"Tries …"'),
        ('class A(B):\n    def f(self):\n        """Fetch one."""\n', 3, '"Fetches …"'),
        ('def f():\n    """Restore the one."""\n', 2, '"Restores …"'),
        ('def f(x):\n    """One.\n\n    :param y: another\n    """\n', 4, "no such parameter"),
        ('def f(x):\n    """One.\n\n    :return: another\n    """\n', 4, ":returns:"),
        ('def f(x):\n    """One.\n\n    Raises:\n        OSError: always.\n    """\n', 4, ":raises X:"),
        ("class A:\n    def f(self):\n        pass\n", 2, "the public method f has none"),
    ],
)
def test_docstrings_have_one_convention(prose, text, line, says):
    (finding,) = prose.findings("a.py", text)
    assert finding.line == line
    assert says in finding.message


@pytest.mark.parametrize(
    "text",
    [
        'def f(x, *y, z=1, **rest):\n    """Returns one.\n\n    :param x: it\n    :param y: it\n    :param z: it\n'
        '    :param rest: it\n    :returns: one\n    :raises OSError: never\n    """\n',
        'def f():\n    """The start. Raises OSError (gone)."""\n',
        'def f():\n    """Start and end of one."""\n',
        'class Write:\n    """Write."""\n',
        "class A(B):\n    def f(self):\n        pass\n",
        "class _A:\n    def f(self):\n        pass\n\n    def _g(self):\n        pass\n",
    ],
)
def test_docstrings_of_the_convention_are_left_alone(prose, text):
    assert prose.findings("a.py", text) == []


def test_a_tests_method_may_be_without_a_docstring(prose):
    assert prose.findings("tests/a.py", "class A:\n    def f(self):\n        pass\n") == []
