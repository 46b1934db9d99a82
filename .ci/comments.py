# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds the prose in source files: comments, docstrings, documentation of modules, and messages.

A block that is indented below a blank line or a colon is an example, and no prose. So is what stands in quotes of code.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePath

import yaml

# Strings and comments of C; a string that holds the mark of a comment is a string.
C_TOKEN = re.compile(r""""(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|/\*(?P<block>.*?)\*/|//(?P<line>[^\n]*)""", re.S)
C_MARGIN = re.compile(r"^[ \t]*\*+ ?", re.M)
# What is written for programs: the interpreter, the licence.
FOR_PROGRAMS = re.compile(r"^(?:!|\s*SPDX-License-Identifier:|\s*noqa\b|\s*type:|\s*pragma:|\s*shellcheck |\s*-\*-)")
HASH = re.compile(r"^(?P<margin>\s*)#(?P<text>.*)$")
# Where a paragraph begins without a blank line above: an item of a list, a field of a docstring.
BEGINS = re.compile(r"^(?:[-*] |\d+\. |:\w+[^:]*:)")
# `code` and ``code``, and what ansible-doc marks: C(code), O(option)
CODE = re.compile(r"``.+?``|`[^`]+`|\b(?:[BCEILMOPRUV]|RV)\([^()]*\)", re.S)
JINJA_NONE = re.compile(r"\bis (?:not )?none\b")
DOCUMENTED = {"DOCUMENTATION", "RETURN"}
DESCRIPTIONS = {"description", "short_description", "notes"}


@dataclass(frozen=True)
class Passage:
    """A paragraph of prose and the line on which it begins, from 1; a message is no place to count words."""

    line: int
    text: str
    is_message: bool = False


def passages(name: str, source: str) -> list[Passage]:
    """Returns the prose in a file, in the order of its lines; raises SyntaxError where Python does not parse."""
    kind = PurePath(name).suffix
    found: list[Passage] = []
    if kind == ".py":
        found += in_python(source, messages="tests" not in PurePath(name).parts)
    elif kind in {".c", ".h"}:
        found += in_c(source)
    else:
        found += in_hashes(source)
    if kind in {".yml", ".yaml"}:
        found += in_descriptions(source)
        found += in_messages(source)
    # an anchor of YAML is met wherever it is used
    return sorted(set(found), key=lambda passage: passage.line)


def in_python(source: str, messages: bool) -> Iterator[Passage]:
    """Yields docstrings, comments and the documentation of modules; if asked, strings of several words as messages."""
    tree = ast.parse(source)
    docstrings = [string for _, string in docstrings_in(tree)]
    for string in docstrings:
        yield from paragraphs(string.lineno, inspect.cleandoc(str(string.value)))
    documents = list(documentation(tree))
    for document in documents:
        for passage in in_descriptions(str(document.value)):
            yield replace(passage, line=document.lineno + passage.line - 1)
    yield from python_comments(source)
    if messages:
        read = {id(node) for node in (*docstrings, *documents)}
        strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in read]
        for node in strings:
            if isinstance(node.value, str) and " " in node.value.strip():
                yield Passage(node.lineno, spoken(node.value), is_message=True)


def docstrings_in(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.Constant]]:
    """Yields modules, classes and functions with their docstrings."""
    for owner in ast.walk(tree):
        if isinstance(owner, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and owner.body:
            first = owner.body[0]
            string = first.value if isinstance(first, ast.Expr) else None
            if isinstance(string, ast.Constant) and isinstance(string.value, str):
                yield owner, string


def documentation(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yields the YAML documents that Ansible reads out of a module."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            names = {target.id for target in statement.targets if isinstance(target, ast.Name)}
            if names & DOCUMENTED:
                yield statement.value


def python_comments(source: str) -> Iterator[Passage]:
    """Yields the comments of Python; those of one margin that follow each other are one text."""
    lines = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            margin = column if token.line.lstrip().startswith("#") else -1
            lines.append((row, margin, token.string.removeprefix("#")))
    yield from hashes(lines)


def in_hashes(source: str) -> Iterator[Passage]:
    """Yields the comments that have a line of their own, of YAML, shell and make."""
    found = [(row, HASH.match(line)) for row, line in enumerate(source.splitlines(), 1)]
    yield from hashes([(row, len(one["margin"]), one["text"]) for row, one in found if one])


def hashes(lines: list[tuple[int, int, str]]) -> Iterator[Passage]:
    """Yields the paragraphs of comments, each line given with row, margin (-1: behind code) and text."""
    block: list[tuple[int, int, str]] = []
    for line in lines:
        if block and (line[0] != block[-1][0] + 1 or line[1] != block[-1][1] or line[1] < 0):
            yield from paragraphs(block[0][0], "\n".join(text for _, _, text in block))
            block = []
        if not FOR_PROGRAMS.match(line[2]):
            block.append((line[0], line[1], line[2].lstrip("#").removeprefix(" ")))
    if block:
        yield from paragraphs(block[0][0], "\n".join(text for _, _, text in block))


def in_c(source: str) -> Iterator[Passage]:
    """Yields the comments of C."""
    for token in C_TOKEN.finditer(source):
        text = token["block"] or token["line"]
        if text:
            yield from paragraphs(source.count("\n", 0, token.start()) + 1, C_MARGIN.sub("", text))


def in_descriptions(document: str) -> Iterator[Passage]:
    """Yields what is said under `description` and `notes` in YAML."""
    for top in yaml.compose_all(document, Loader=yaml.SafeLoader):
        yield from described(top) if top else ()


def described(node: yaml.Node) -> Iterator[Passage]:
    """Yields the descriptions below a node of YAML."""
    if isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from described(one)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            values = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if key.value in DESCRIPTIONS and all(isinstance(one, yaml.ScalarNode) for one in values):
                for one in values:
                    yield from paragraphs(one.start_mark.line + 1, one.value)
            else:
                yield from described(value)


def in_messages(document: str) -> Iterator[Passage]:
    """Yields every value of YAML that has several words. Jinja's `is none` is a test and no word."""
    for event in yaml.parse(document, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.ScalarEvent) and event.start_mark and " " in event.value.strip():
            yield Passage(event.start_mark.line + 1, spoken(JINJA_NONE.sub("", event.value)), is_message=True)


def paragraphs(line: int, text: str) -> Iterator[Passage]:
    """Yields the paragraphs of a text that begins on a line, examples left out."""
    block: list[str] = []
    begins = line
    may_be_example, in_example = False, False
    for number, row in enumerate(text.expandtabs(8).splitlines(), line):
        indented = row.startswith("  ")
        in_example = bool(row.strip()) and indented and (in_example or may_be_example)
        if block and (not row.strip() or in_example or BEGINS.match(row.strip())):
            yield Passage(begins, spoken("\n".join(block)))
            block = []
        if row.strip():
            may_be_example = row.rstrip().endswith(":") or in_example
            if not in_example:
                begins = begins if block else number
                block.append(row.strip())
        else:
            may_be_example = True
    if block:
        yield Passage(begins, spoken("\n".join(block)))


def spoken(text: str) -> str:
    """Returns the words of a paragraph, code as one word."""
    return " ".join(CODE.sub("`code`", text).split())
