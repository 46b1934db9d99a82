#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks the prose of hand-written Markdown: width of lines, words that we avoid, length of sentences.

    prose.py FILE ...      prints a line for each finding and exits 1 if there is one

Tables and code may be wider than a line, and so may a link's address. Code is no prose: its words are not looked at.
What a program wrote between two marks is left alone. markdown-it-py tells what is what.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
MAX_COLUMNS = 110
MAX_WORDS = 25
# What is avoided → what to write.
WORDS = {
    re.compile(r"\bmend(?:s|ed|ing)?\b", re.I): "fix",
    re.compile(r"\bbeside\b", re.I): "next to, during, or together with",
    re.compile(r"\b(?:is|are|was|were|be|tells?|told|knows?|expects?|takes?) none\b", re.I): "no …, or not …",
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


def findings(text: str) -> list[Finding]:
    """Returns what is wrong with a page, in the order of its lines."""
    text = MADE.sub(lambda made: "\n" * made[0].count("\n"), text)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    found = [*wide_lines(text, tokens), *avoided_words(tokens), *long_sentences(tokens)]
    return sorted(found, key=lambda finding: finding.line)


def wide_lines(text: str, tokens: list[Token]) -> Iterator[Finding]:
    """Yields the lines that are too wide, tables and code left out, addresses not counted."""
    free = lines_of(tokens, {"table_open", "fence", "code_block"})
    for number, line in enumerate(text.splitlines()):
        width = len(ADDRESS.sub("", line))
        if number not in free and width > MAX_COLUMNS:
            yield Finding(number + 1, f"{width} columns, at most {MAX_COLUMNS}")


def avoided_words(tokens: list[Token]) -> Iterator[Finding]:
    """Yields the words that we avoid, each with what to write."""
    for line, prose in paragraphs(tokens):
        for pattern, better in WORDS.items():
            for match in pattern.finditer(prose):
                yield Finding(line, f'"{match[0]}": write {better}')


def long_sentences(tokens: list[Token]) -> Iterator[Finding]:
    """Yields the sentences with too many words; a table's cells are no sentences."""
    tables = lines_of(tokens, {"table_open"})
    for line, prose in paragraphs(tokens):
        if line - 1 in tables:
            continue
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
        page = (ROOT / name).read_text(encoding="utf-8")
        for finding in findings(page):
            print(f"{name}:{finding.line}: {finding.message}")
            count += 1
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
