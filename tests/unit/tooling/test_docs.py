# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documents point at exists."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.module_utils.ckpt.vocabulary import REASONS
from project import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("roles/*/README.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
TO_HEADING = re.compile(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)")
MODULES = sorted(path.stem for path in ROOT.glob("library/*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def anchors(page):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_headings_lead_to_one(page):
    links = TO_HEADING.findall(page.read_text(encoding="utf-8"))
    targets = [(page.parent / name if name else page, anchor) for name, anchor in links]
    assert [anchor for target, anchor in targets if anchor not in anchors(target)] == []


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_a_page_has_a_place_for_the_tables(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.index("<!-- headline:begin") < text.index("<!-- headline:end -->")


def test_ansible_doc_shows_every_module():
    command = [str(Path(sys.executable).with_name("ansible-doc")), "--type", "module", "--json", *MODULES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"ANSIBLE_NOCOLOR": "1"})
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr


@pytest.mark.parametrize("plugin", sorted(ROOT.glob("filter_plugins/*.py")), ids=lambda path: path.stem)
def test_every_filter_is_documented_and_used(plugin):
    plays = [*ROOT.glob("playbooks/*.yml"), *ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("roles/*/vars/*.yml")]
    used = "".join(path.read_text(encoding="utf-8") for path in plays)
    spec = importlib.util.spec_from_file_location(plugin.stem, plugin)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    filters = module.FilterModule().filters()
    assert filters
    assert [name for name in filters if not plugin.with_name(f"{name}.yml").is_file()] == []
    assert [name for name in filters if not re.search(rf"\|\s*{name}\b", used)] == []


def test_every_module_is_used_by_a_play_or_told_of_in_the_documents():
    places = [*ROOT.glob("playbooks/*.yml"), *ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("docs/*.md")]
    told = "".join(path.read_text(encoding="utf-8") for path in places)
    assert [name for name in MODULES if not re.search(rf"\b{name}\b", told)] == []


def test_make_help_names_the_two_commands():
    text = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "make bench " in text
    assert "make test " in text


def test_every_reason_is_explained_once():
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", (ROOT / "docs/failures.md").read_text(encoding="utf-8"), re.M)
    assert sorted(reason for reason, _ in rows) == sorted(REASONS)
    assert [reason for reason, cells in rows if len([cell for cell in cells.split(" | ") if cell.strip()]) != 3] == []
