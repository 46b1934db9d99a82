# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing in the repository ties it to one machine or to one package index."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Put together here, so that this file does not hold what it forbids.
INDEX_HOSTS = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("deb", "debian", "org"),
        ("snapshot", "debian", "org"),
        ("security", "debian", "org"),
        ("registry", "npmjs", "org"),
        ("galaxy", "ansible", "com"),
    ]
]
MACHINE_PATHS = [
    f"/{first}/{second}"
    for first, second in [("work", "main"), ("work", "shared"), ("root", ".pyenv"), ("tmp", "brief")]
]
FORBIDDEN = re.compile("|".join(map(re.escape, INDEX_HOSTS + MACHINE_PATHS)))
# What a run recorded is left as it was recorded.
EXEMPT = ("reports/published/",)


def tracked_files():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [ROOT / name for name in names if not name.startswith(EXEMPT) and (ROOT / name).is_file()]


def offences(path):
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return []
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        if FORBIDDEN.search(line)
    ]


def test_no_index_host_and_no_path_of_one_machine():
    found = [offence for path in tracked_files() for offence in offences(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", [f"see https://{INDEX_HOSTS[0]}/simple", f"cd {MACHINE_PATHS[0]}"])
def test_the_pattern_finds_what_it_forbids(text, tmp_path):
    assert FORBIDDEN.search(text)


@pytest.mark.parametrize("name", ["controller", "dev", "collections"])
def test_every_requirement_is_pinned_with_a_hash(name):
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[a-z])", re.sub(r"^\s*#.*\n?", "", text, flags=re.M).strip())
    assert blocks
    for block in blocks:
        assert re.match(r"[a-z0-9._-]+(\[[a-z]+\])?==\S+", block), block
        assert "--hash=sha256:" in block, block
