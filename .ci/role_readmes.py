#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes roles/*/README.md from each role's meta/argument_specs.yml.

role_readmes.py [--check]      --check: write nothing, exit 1 naming the files that are not what would be written
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
HEAD = "<!-- Written by `make roles-docs` from meta/argument_specs.yml: edit that. -->\n"
# C(code), V(value), O(option), I(name): ansible-doc renders them, Markdown does not.
MARKED = re.compile(r"\b[CVOI]\(([^()]+)\)")
COLUMNS = 110
# A description of several paragraphs that is longer than this stands below the table, its first paragraph in the cell.
CELL_LENGTH = 300


def words(value: str | list[str]) -> str:
    """Joins the paragraphs of a description, with what ansible-doc marks as code or as a value in Markdown."""
    return MARKED.sub(r"`\1`", value if isinstance(value, str) else "\n\n".join(value))


def filled(value: str | list[str]) -> str:
    """Returns the paragraphs of a description in lines that are not too wide, code in one piece."""
    glued = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", "\0"), words(value))
    lines = [
        textwrap.fill(one, COLUMNS - 2, break_long_words=False, break_on_hyphens=False) for one in glued.split("\n\n")
    ]
    return "\n\n".join(lines).replace("\0", " ")


def is_long(value: str | list[str]) -> bool:
    """Tells whether a description is too long for a table's cell."""
    return not isinstance(value, str) and len(value) > 1 and len(words(value)) > CELL_LENGTH


def cell(value: str | list[str]) -> str:
    """Returns a description that fits a table cell."""
    return " ".join(words(value).split()).replace("|", "\\|")


def shown(option: dict[str, Any]) -> str:
    """Returns a default as code, or says that the option is required or has none."""
    if option.get("required"):
        return "required"
    if "default" not in option or option["default"] is None:
        return ""
    return f"`{json.dumps(option['default'], ensure_ascii=False)}`".replace("|", "\\|")


def kind(option: dict[str, Any]) -> str:
    """Returns an option's type, with what it may be."""
    text = str(option.get("type", "str"))
    if elements := option.get("elements"):
        text += f" of {elements}"
    if choices := option.get("choices"):
        text += ": " + ", ".join(str(choice) for choice in choices)
    return text


def rows(options: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns the table rows of options, those inside a dictionary below it."""
    lines = []
    for name, option in options.items():
        path = f"{prefix}{name}"
        described = option.get("description", "")
        meaning = f"{cell(described[0])} More below." if is_long(described) else cell(described)
        lines.append(f"| `{path}` | {kind(option)} | {shown(option)} | {meaning} |")
        lines += rows(option.get("options", {}), f"{path}.")
    return lines


def long_descriptions(options: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns a list for each option whose description is too long for the table."""
    lines = []
    for name, option in options.items():
        described = option.get("description", "")
        if is_long(described):
            items = [textwrap.indent(filled(one), "  ").replace("  ", "- ", 1) for one in described[1:]]
            lines += [f"`{prefix}{name}`:", "", *items, ""]
        lines += long_descriptions(option.get("options", {}), f"{prefix}{name}.")
    return lines


def entry_point(name: str, spec: dict[str, Any]) -> list[str]:
    """Returns the section of one entry point."""
    title = "Variables" if name == "main" else f"Entry point `{name}`"
    lines = [f"## {title}", ""]
    if name != "main" and "short_description" in spec:
        lines += [filled(spec["short_description"]), ""]
    if options := spec.get("options"):
        lines += ["| name | type | default | meaning |", "|---|---|---|---|", *rows(options), ""]
        lines += long_descriptions(options)
    elif name == "main":
        lines += ["None.", ""]
    return lines


def readme(role: Path) -> str:
    """Returns the README of a role; raises SystemExit when it has no argument specification."""
    specs_file = role / "meta" / "argument_specs.yml"
    if not specs_file.is_file():
        raise SystemExit(f"{role.relative_to(ROOT)}: no meta/argument_specs.yml")
    specs = yaml.safe_load(specs_file.read_text(encoding="utf-8"))["argument_specs"]
    main = specs["main"]
    lines = [HEAD, f"# {role.name}", "", filled(main.get("short_description", "")), ""]
    if "description" in main:
        lines += [filled(main["description"]), ""]
    for name, spec in specs.items():
        # an entry point with main's own variables would only repeat the table
        if name == "main" or spec.get("options") not in (None, {}, main.get("options")):
            lines += entry_point(name, spec)
    return "\n".join(lines).rstrip() + "\n"


def main(check: bool) -> int:
    """Writes or compares every role's README; returns the exit status."""
    stale = []
    for tasks in sorted(ROOT.glob("roles/*/tasks/main.yml")):
        role = tasks.parents[1]
        target, text = role / "README.md", readme(role)
        if target.is_file() and target.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(target.relative_to(ROOT)))
        if not check:
            target.write_text(text, encoding="utf-8")
    if stale:
        print(("out of date, run `make roles-docs`: " if check else "written: ") + ", ".join(stale))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
