#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks the prose of Markdown and of source files: words that we avoid, length of sentences, docstrings.

    prose.py FILE ...      prints a line for each finding and exits 1 if there is one

Code is no prose: its words are not looked at. In Markdown (read by markdown-it-py) lines have a width, too. Tables, code
and addresses may be wider, and what a program wrote between two marks is left alone. In source files the prose is what
`comments.py` finds, and `docstrings.py` says what ruff does not know of docstrings.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import comments
import docstrings
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
MAX_COLUMNS = 110
MAX_WORDS = 25
# What is avoided → what to write.
WORDS = {
    re.compile(r"\bmend(?:s|ed|ing)?\b", re.I): "fix",
    re.compile(r"\bbeside\b", re.I): "next to, during, or together with",
    # "there is none" is good English, and Python's None is a name
    re.compile(r"(?<!there )\b(?i:is|are|was|were|be|tells?|told|knows?|expects?|takes?) none\b"): "no …, or not …",
}
ADDRESS = re.compile(r"(?<=\])\([^()\s]+\)|https?://\S+")
END_OF_SENTENCE = re.compile(r"""(?<=[.!?])["')]*\s+""")
WORD = re.compile(r"\w")
# What a program writes into a page, between two marks: <!-- headline:begin … --> and <!-- headline:end -->.
MADE = re.compile(r"<!-- (\w+):begin\b.*?<!-- \1:end -->", re.S)
CODE = "`code`"  # stands for any code in a sentence: one word


@dataclass(frozen=True)
class Finding:
    """What is wrong in one place; `line` counts from 1."""

    line: int
    message: str


def findings(name: str, text: str) -> list[Finding]:
    """Returns what is wrong with a file, in the order of its lines."""
    found = in_markdown(text) if name.endswith(".md") else in_source(name, text)
    return sorted(found, key=lambda finding: finding.line)


def in_source(name: str, text: str) -> Iterator[Finding]:
    """Yields what is wrong with the prose of a source file."""
    for passage in comments.passages(name, text):
        yield from avoided(passage.line, passage.text)
        if not passage.is_message:
            yield from too_long(passage.line, passage.text)
    if name.endswith(".py"):
        yield from (
            Finding(line, message)
            for line, message in docstrings.faults(text, may_be_missing=name.startswith("tests/"))
        )


def in_markdown(text: str) -> Iterator[Finding]:
    """Yields what is wrong with a page."""
    text = MADE.sub(lambda made: "\n" * made[0].count("\n"), text)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    tables = lines_of(tokens, {"table_open"})
    yield from wide_lines(text, tokens)
    for line, prose in paragraphs(tokens):
        yield from avoided(line, prose)
        if line - 1 not in tables:  # a table's cells are no sentences
            yield from too_long(line, prose)


def wide_lines(text: str, tokens: list[Token]) -> Iterator[Finding]:
    """Yields the lines that are too wide, tables and code left out, addresses not counted."""
    free = lines_of(tokens, {"table_open", "fence", "code_block"})
    for number, line in enumerate(text.splitlines()):
        width = len(ADDRESS.sub("", line))
        if number not in free and width > MAX_COLUMNS:
            yield Finding(number + 1, f"{width} columns, at most {MAX_COLUMNS}")


def avoided(line: int, prose: str) -> Iterator[Finding]:
    """Yields the words of a paragraph that we avoid, each with what to write."""
    for pattern, better in WORDS.items():
        for match in pattern.finditer(prose):
            yield Finding(line, f'"{match[0]}": write {better}')


def too_long(line: int, prose: str) -> Iterator[Finding]:
    """Yields the sentences of a paragraph with too many words."""
    for sentence in END_OF_SENTENCE.split(prose):
        count = sum(bool(WORD.search(word)) for word in sentence.split())
        if count > MAX_WORDS:
            yield Finding(line, f"a sentence of {count} words, at most {MAX_WORDS}: {sentence[:60]}…")


def paragraphs(tokens: list[Token]) -> Iterator[tuple[int, str]]:
    """Yields first line (from 1) and words of each paragraph, heading and cell, code as one word."""
    line = 0
    for token in tokens:
        line = token.map[0] if token.map else line
        if token.type == "inline":
            yield line + 1, "".join(spoken(child) for child in token.children or ())


def spoken(token: Token) -> str:
    """Returns what a part of a paragraph adds to its words."""
    return {"softbreak": " ", "hardbreak": " ", "code_inline": CODE, "text": token.content}.get(token.type, "")


def lines_of(tokens: list[Token], types: set[str]) -> set[int]:
    """Returns the lines, from 0, on which blocks of these types lie."""
    return {line for token in tokens if token.type in types and token.map for line in range(*token.map)}


def main(names: list[str]) -> int:
    """Checks the files; returns the exit status."""
    count = 0
    for name in names:
        for finding in findings(name, (ROOT / name).read_text(encoding="utf-8")):
            print(f"{name}:{finding.line}: {finding.message}")
            count += 1
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
