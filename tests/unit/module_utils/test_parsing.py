# SPDX-License-Identifier: GPL-3.0-or-later
"""Foreign documents: what is taken, and what is said of the rest."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.ckpt.errors import CkptError, of_os_error, os_errors_explained
from ansible.module_utils.ckpt.parsing import FormatError, build, parse_json, pick, require_document


@dataclass
class Inner:
    number: int


@dataclass
class Outer:
    name: str
    ratio: float
    inner: Inner
    limit: int | None = None
    tags: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    rest: Any = None


WHOLE: dict[str, Any] = {"name": "a", "ratio": 1, "inner": {"number": 2}, "sizes": {"x": 3}, "rest": [None]}


def test_a_document_becomes_what_it_describes() -> None:
    assert build(Outer, WHOLE) == Outer("a", 1.0, Inner(2), None, [], {"x": 3}, [None])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 1}, "name must be text"),
        ({"ratio": True}, "ratio must be a number"),
        ({"ratio": float("nan")}, "ratio must be a number"),
        ({"inner": {"number": 1.0}}, "inner.number must be a whole number"),
        ({"inner": {}}, "inner.number is missing"),
        ({"inner": []}, "inner is not an object"),
        ({"limit": "1"}, "limit must be a whole number"),
        ({"tags": ["a", 2]}, r"tags\[1\] must be text"),
        ({"sizes": {"x": None}}, "sizes.x must be a whole number"),
        ({"colour": 1, "name": None}, "colour is not known; name must be text"),
        ({str(number): 1 for number in range(9)}, "and 4 more"),
    ],
)
def test_everything_that_is_wrong_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        build(Outer, {**WHOLE, **change})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "is not JSON"),
        (b'"\xff"', "is not JSON"),
        ("NaN", "NaN is no number"),
        ("[-Infinity]", "Infinity is no number"),
        ("1e999", "too large"),
        ("9" * 5000, "too large"),
        ('{"a": "\\udc00"}', "surrogates"),
        ('{"\\ud800": 1}', "surrogates"),
        ("[" * 100 + "]" * 100, "nested too deeply"),
        ("[" * 100000, "nested too deeply"),
    ],
)
def test_what_is_no_document(document: str | bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        parse_json(document)


def test_documents_that_are_sound() -> None:
    assert parse_json('{"a": "\\ud83d\\ude00 é\\u0000", "b": [18446744073709551616, -1.5e10, null]}') == {
        "a": "\U0001f600 é\0",
        "b": [1 << 64, -1.5e10, None],
    }
    assert parse_json("[" * 60 + "]" * 60)


def test_a_part_of_a_document() -> None:
    document = [{"State": {"Pid": 7, "Names": None}}]
    assert pick(document, 0, "State", "Pid", kind=int) == 7
    assert pick(document, 0, "State", "Names", "first", kind=str, default="none") == "none"
    assert pick(document, 1, "State", kind=str, default=None) is None
    for path, words in (((0, "State", "Pid", "x"), "another type"), ((0, "Status"), "0.Status must be text")):
        with pytest.raises(FormatError, match=words):
            pick(document, *path, kind=str)


@pytest.mark.parametrize("value", ["\0", {"\0": 1}, ["\ud800"], float("inf"), 1 << 65, b"bytes", [[]] * 3 + [{1: {2}}]])
def test_options_that_no_command_can_be_given(value: Any) -> None:
    with pytest.raises(FormatError):
        require_document({"a": [value]})


@pytest.mark.parametrize(
    ("number", "path", "reason"),
    [
        (errno.ENOSPC, "/store/a", "store_full"),
        (errno.EDQUOT, None, "store_full"),
        (errno.EROFS, "/store/a", "file_unusable"),
        (errno.EACCES, b"/store/\xff", "file_unusable"),
        (errno.EMFILE, None, "internal"),
    ],
)
def test_what_the_system_refuses_has_a_reason(number: int, path: str | bytes | None, reason: str) -> None:
    error = of_os_error(OSError(number, "as the kernel says it", path))
    assert error.reason == reason
    assert "as the kernel says it" in error.message


def test_an_error_of_the_system_carries_its_traceback() -> None:
    with pytest.raises(CkptError) as caught, os_errors_explained():
        Path("/proc/self/no such file").read_text()
    assert caught.value.reason == "file_unusable"
    assert any("no such file" in line for line in caught.value.log_lines)
