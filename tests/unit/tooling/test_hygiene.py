# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing in the repository ties it to one machine or to one package index: here, to the machine that runs the test."""

import os
import re
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from project import ROOT

ADDRESS = re.compile(r"https?://[^\s'\",)\]]+")
LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|\[?::1\]?|None")
SYSTEM_PREFIXES = ("/usr", "/usr/local")
# What a run recorded is left as it was recorded.
EXEMPT = ("reports/published/",)


def index_hosts(told: str) -> set[str]:
    """The hosts in what pip says of its configuration; one on this machine gives nothing away."""
    hosts = {str(urlsplit(address).hostname) for address in ADDRESS.findall(told)}
    return {host for host in hosts if not LOOPBACK.fullmatch(host)}


def pip_says(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"COLUMNS": "500"}
    ).stdout


def configured_hosts() -> set[str]:
    """Where pip looks on this machine: its help names the index in force, its configuration the further ones."""
    offered = re.search(r"--index-url <url>.*?\n +-", pip_says("install", "--help"), re.S)
    assert offered, "pip's help no longer names its index"
    return index_hosts(offered[0]) | index_hosts(pip_says("config", "list"))


def machine_paths() -> list[str]:
    """Patterns of the folders of this machine: what lies in this checkout, and an interpreter of its own."""
    inside = "|".join(sorted(re.escape(path.name) for path in ROOT.iterdir() if not path.name.startswith(".")))
    own = [] if sys.base_prefix in SYSTEM_PREFIXES else [re.escape(sys.base_prefix)]
    return [rf"{re.escape(str(ROOT))}/(?:{inside})\b", *own]


@pytest.fixture(scope="module")
def forbidden() -> re.Pattern[str]:
    return re.compile("|".join([*map(re.escape, sorted(configured_hosts())), *machine_paths()]))


def tracked_files():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [ROOT / name for name in names if not name.startswith(EXEMPT) and (ROOT / name).is_file()]


def offences(path, forbidden):
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return []
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        if forbidden.search(line)
    ]


def test_no_index_host_and_no_path_of_this_machine(forbidden):
    found = [offence for path in tracked_files() for offence in offences(path, forbidden)]
    assert not found, "\n".join(found)


def test_the_pattern_finds_what_it_forbids(forbidden):
    assert forbidden.search(f"cd {ROOT}/roles")
    assert all(forbidden.search(f"see https://{host}/simple") for host in configured_hosts())
    assert not forbidden.search("/opt/gpuckpt/criu, https://example.org")


def test_hosts_are_read_from_what_pip_says():
    told = """global.index-url='https://user:secret@index.example.org/simple'
:env:.extra-index-url='http://localhost:3141/x http://wheels.example.org/y'
  -i, --index-url <url>  Base URL of the index (default https://default.example.org/simple). This should"""
    assert index_hosts(told) == {"index.example.org", "wheels.example.org", "default.example.org"}


@pytest.mark.parametrize("name", ["controller", "dev", "collections"])
def test_every_requirement_is_pinned_with_a_hash(name):
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[a-z])", re.sub(r"^\s*#.*\n?", "", text, flags=re.M).strip())
    assert blocks
    for block in blocks:
        assert re.match(r"[a-z0-9._-]+(\[[a-z]+\])?==\S+", block), block
        assert "--hash=sha256:" in block, block
