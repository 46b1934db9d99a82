# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks what ruff's rules (D, pep257) do not know of our docstrings: the form of the verb, and fields."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from comments import docstrings_in

# words that are nouns, too: orders only before an object
OTHER_ORDERS = re.compile(
    r"\s*(?:call|checkpoint|claim|complete|count|cut|do|dump|free|list|lock|map|pin|play|poll|post|provision|record|restore|"
    r"see|stamp|start) (?:a|all|an|each|every|host|it|its|one|that|the|this|those|until|what)\b",
    re.I,
)
FIELD = re.compile(r"^\s*:(\w+)[ \t]*([^:\n]*):", re.M)
FIELDS = {"param", "returns", "raises"}
# Google's sections
SECTION = re.compile(r"^\s*(?:Args|Arguments|Returns|Raises|Yields):[ \t]*$", re.M)
Function = ast.FunctionDef | ast.AsyncFunctionDef
# A docstring says what a function does: "Returns …". Ruff's D401 wants an order: "Return …".
ORDERS = re.compile(
    r"add|append|apply|ask|become|begin|bring|check|collect|compare|compute|connect|convert|copy|"
    r"create|decide|delete|deny|detach|download|draw|end|ensure|expand|fetch|fill|find|follow|"
    r"get|give|hand|hold|initialise|install|keep|kill|lay|leave|let|listen|load|look|make|"
    r"measure|move|note|offer|open|parse|pick|prefetch|prepare|print|put|raise|read|refuse|"
    r"register|release|remove|render|replace|resolve|return|rewrite|run|say|send|serve|set|show|"
    r"skip|stop|take|tell|try|turn|undo|unpack|validate|verify|wait|write|yield"
)


def faults(source: str, may_be_missing: bool = False) -> Iterator[tuple[int, str]]:
    """Yields line and fault of each docstring that breaks our convention."""
    tree = ast.parse(source)
    if not may_be_missing:
        yield from missing(tree)
    for owner, node in docstrings_in(tree):
        text = str(node.value)
        words = text.split(maxsplit=1)
        first = words[0].strip(",;:.").lower() if words else ""
        if isinstance(owner, Function) and (ORDERS.fullmatch(first) or OTHER_ORDERS.match(text)):
            yield node.lineno, f'docstring "{first.capitalize()} …": say what the function does: "{third(first)} …"'
        for section in SECTION.finditer(text):
            line = node.lineno + text.count("\n", 0, section.end())
            yield line, f"docstring section {section[0].strip()} write fields: :param x:, :returns: and :raises X:"
        for field in FIELD.finditer(text):
            yield from field_faults(owner, node.lineno + text.count("\n", 0, field.start(1)), field[1], field[2])


def missing(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields the public methods without a docstring, of classes without a base: a base documents what is overridden."""
    for owner in ast.walk(tree):
        if isinstance(owner, ast.ClassDef) and not owner.bases and not owner.name.startswith("_"):
            for one in owner.body:
                if isinstance(one, Function) and not one.name.startswith("_") and not ast.get_docstring(one):
                    yield one.lineno, f"docstring: the public method {one.name} has none"


def field_faults(owner: ast.AST, line: int, field: str, name: str) -> Iterator[tuple[int, str]]:
    """Yields what is wrong with one field of a docstring."""
    if field not in FIELDS:
        yield line, f'docstring field ":{field}": there are :param x:, :returns: and :raises X:'
    elif field == "param" and isinstance(owner, Function) and name not in parameters(owner):
        yield line, f"docstring field :param {name}: the function has no such parameter"


def parameters(function: Function) -> set[str]:
    """Returns the names of a function's parameters."""
    asked = function.args
    named = [*asked.posonlyargs, *asked.args, *asked.kwonlyargs, asked.vararg, asked.kwarg]
    return {one.arg for one in named if one}


def third(verb: str) -> str:
    """Returns a verb as it stands behind `it`, with a capital."""
    if verb.endswith(("ch", "sh", "s", "x", "o")):
        verb += "es"
    elif verb.endswith("y") and verb[-2] not in "aeiou":
        verb = f"{verb[:-1]}ies"
    else:
        verb += "s"
    return verb.capitalize()
