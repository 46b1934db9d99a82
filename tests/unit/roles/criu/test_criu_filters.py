# SPDX-License-Identifier: GPL-3.0-or-later
"""What role criu builds, deploys and links on a node, and which settings it refuses."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from project import ROOT, filters_of

ROLE = filters_of("criu")
STOCK, PATCHED, OLD, OLDER = "5" * 12, "f" * 12, "0" * 12, "1" * 12
NAMES = {"digests": {"stock": STOCK, "patched": PATCHED}, "archived": ["stock", "patched"]}
PLATFORM = "debian12-x86_64"
DISTRO = hashlib.sha256(f"distro 4.1.1-1 {PLATFORM}".encode()).hexdigest()[:12]
LINKS = {"/b/stock": STOCK, "/b/patched": PATCHED, "/b/current": "patched", "/sbin/criu": "/b/current/bin/criu"}
ASKED: dict[str, Any] = {
    "root": "/b",
    "front": "/sbin/criu",
    "program": "/usr/sbin/criu",
    "platform": PLATFORM,
    "variants": ["stock", "patched"],
    "current": "patched",
    "distro": True,
    "prebuilt": False,
}


def node(
    builds: list[str], links: dict[str, str], version: str | None = None, offered: bool = False, there: bool = False
) -> dict[str, Any]:
    """What a node tells of its builds, and of the distribution's own."""
    return {
        "complete_builds": builds,
        "links": links,
        "packages": {"criu": version} if version else {},
        "offered": ["criu"] if offered else [],
        "paths": {"/usr/sbin/criu": {"exists": there}},
    }


def test_a_fresh_node_lacks_all() -> None:
    plan = ROLE.criu_plan({**NAMES, "archived": ["stock"]}, node([], {}), ASKED)
    assert (plan["missing"], plan["to_build"]) == (["stock", "patched"], ["patched"])
    assert plan["links"] == LINKS
    assert plan["to_link"] == [{"name": name, "target": target} for name, target in LINKS.items()]
    assert (plan["unlinked"], plan["tried"]) == ([], ["stock", "patched"])
    assert (plan["distro"]["version"], plan["distro"]["wanted"]) == ("", False)


def test_a_node_that_has_all_is_left_alone() -> None:
    found = node([DISTRO, PATCHED, STOCK], {**LINKS, "/b/distro": DISTRO}, "4.1.1-1", there=True)
    plan = ROLE.criu_plan(NAMES, found, ASKED)
    assert (plan["missing"], plan["to_build"], plan["to_link"], plan["unlinked"]) == ([], [], [], [])
    assert plan["distro"] == {"version": "4.1.1-1", "digest": DISTRO, "wanted": False}
    assert plan["tried"] == ["stock", "patched", "distro"]


def test_links_that_lead_elsewhere_are_made_anew() -> None:
    plan = ROLE.criu_plan(NAMES, node([PATCHED, STOCK], {**LINKS, "/b/stock": OLD, "/sbin/criu": "/old"}), ASKED)
    assert [link["name"] for link in plan["to_link"]] == ["/b/stock", "/sbin/criu"]


def test_builds_to_which_no_link_leads_are_told_newest_first() -> None:
    # `old` is that of a variant that is no longer asked for, and has its link still
    found = node([PATCHED, OLDER, "9" * 12, OLD], {**LINKS, "/b/old": OLD})
    assert ROLE.criu_plan(NAMES, found, ASKED)["unlinked"] == [OLDER, "9" * 12]


def test_the_former_target_of_a_link_that_is_made_anew_is_unlinked() -> None:
    found = node([STOCK, PATCHED, OLD], {**LINKS, "/b/patched": OLD})
    assert ROLE.criu_plan(NAMES, found, ASKED)["unlinked"] == [OLD]


def test_given_builds_are_not_built() -> None:
    plan = ROLE.criu_plan({**NAMES, "archived": []}, node([], {}), {**ASKED, "prebuilt": True})
    assert (plan["missing"], plan["to_build"]) == (["stock", "patched"], [])


@pytest.mark.parametrize(
    ("found", "asked", "wanted", "tried"),
    [
        (node([], {}, "4.1.1-1", there=True), True, True, True),
        (node([DISTRO], {}, "4.1.1-1", there=True), True, False, True),
        (node([], {}, "4.1.1-1", there=True), False, False, False),
        (node([], {}, offered=True), True, True, False),
        (node([], {}, offered=True), False, False, False),
        (node([], {}), True, False, False),
    ],
    ids=["there", "linked", "not asked for", "offered", "offered, not asked for", "none"],
)
def test_the_distributions_own_is_one_of_the_builds_where_it_has_one(found, asked, wanted, tried) -> None:
    plan = ROLE.criu_plan(NAMES, found, {**ASKED, "distro": asked})
    assert (plan["distro"]["wanted"], "distro" in plan["tried"]) == (wanted, tried)
    assert ("/b/distro" in plan["links"]) == tried


@pytest.mark.parametrize("packages", [{}, None], ids=["dpkg", "no dpkg"])
def test_a_program_that_no_package_brought_is_a_build_all_the_same(packages) -> None:
    plan = ROLE.criu_plan(NAMES, {**node([], {}, there=True), "packages": packages}, ASKED)
    assert (plan["distro"]["version"], plan["distro"]["wanted"]) == ("unpackaged", True)


def test_the_trial_fails_for_builds_of_our_own_alone() -> None:
    results = {name: {"ok": name == "stock", "message": f"m-{name}"} for name in ("stock", "patched", "distro")}
    lines = ["sudo: unable to resolve host node1", json.dumps(results)]
    came_to = ROLE.criu_trial(lines, ["stock", "patched", "distro"], ["stock", "patched"])
    assert came_to["messages"] == ["stock: m-stock", "patched: m-patched", "distro: m-distro"]
    assert came_to["failed"] == ["patched"]
    assert ROLE.criu_trial(lines, ["stock", "distro"], ["stock"])["failed"] == []


HOST = {"name": "node1", "user_id": 0, "machine": "x86_64", "has_pool": True}
GOOD: dict[str, Any] = {
    "variants": ["stock", "patched"],
    "current": "patched",
    "tarball_sha256": "0a" * 32,
    "tarball_file": "",
    "prebuilt_dir": "",
    "action_scripts": {"pre-dump": "#!/bin/sh"},
    "hooks": ["pre-dump", "post-dump"],
    "env": {
        "CRIU_READ_THREADS": 8,
        "GPUCKPT_CRIU_BUILD": "stock",
        "GPUCKPT_LIBCUDA": "/opt/libcuda.so.1",
        "CRIU_X": "",
    },
    "context_pool_service": True,
}


def test_settings_that_can_work_are_taken() -> None:
    assert ROLE.criu_problems(GOOD, HOST) == []
    assert ROLE.criu_problems({**GOOD, "context_pool_service": False}, {**HOST, "has_pool": False}) == []


@pytest.mark.parametrize(
    ("change", "host", "said"),
    [
        ({}, {"user_id": 1000}, "criu needs root on node1. Run with --become, or as root."),
        ({}, {"machine": "aarch64"}, "criu supports x86_64, but node1 is aarch64. Leave this host out."),
        ({"variants": ["patched", "new"]}, {}, "must be a choice of stock and patched, not ['patched', 'new']."),
        ({"current": "distro"}, {}, "criu_current is distro, which criu_variants (stock, patched) does not provide."),
        ({"tarball_sha256": "0A" * 32}, {}, "criu_tarball_sha256 must be 64 hexadecimal digits, not 0A0A"),
        ({"tarball_sha256": "0a" * 32 + "\n"}, {}, "criu_tarball_sha256 must be 64 hexadecimal digits"),
        ({"tarball_sha256": ""}, {}, "criu_tarball_sha256 must be 64 hexadecimal digits, not ."),
        ({"action_scripts": {"pre-lunch": ""}}, {}, "knows the hooks pre-dump, post-dump, not pre-lunch."),
        ({"env": {"LD_PRELOAD": "/x", "CRIU_A": "1"}}, {}, "GPUCKPT_LIBCUDA only, not LD_PRELOAD."),
        ({"env": {"GPUCKPT_CRIU_ROOT": "/x"}}, {}, "only, not GPUCKPT_CRIU_ROOT."),
        ({"env": {"CRIU_A\n": "1"}}, {}, "criu_env may hold CRIU_*, GPUCKPT_CRIU_BUILD and GPUCKPT_LIBCUDA only"),
        (
            {"env": {"CRIU_A": "$(x)", "CRIU_B": "1"}},
            {},
            "letters, digits and _ . / : , = + - only, unlike those of CRIU_A.",
        ),
        ({"env": {"CRIU_A": "1\n"}}, {}, "unlike those of CRIU_A."),
        ({}, {"has_pool": False}, "criu_context_pool_service needs systemd and the patched build on node1."),
        (
            {"tarball_file": "/nonexistent"},
            {},
            "criu_tarball_file is /nonexistent, which does not exist on the controller.",
        ),
    ],
)
def test_each_mistake_is_named(change: dict[str, Any], host: dict[str, Any], said: str) -> None:
    [problem] = ROLE.criu_problems({**GOOD, **change}, {**HOST, **host})
    assert said in problem


def test_no_variant_is_no_choice() -> None:
    problems = ROLE.criu_problems({**GOOD, "variants": []}, HOST)
    assert [text.split()[0] for text in problems] == ["criu_variants", "criu_current"]


def test_given_builds_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock/BUILD.json").write_text("{}", encoding="utf-8")
    [problem] = ROLE.criu_problems({**GOOD, "prebuilt_dir": str(tmp_path)}, HOST)
    assert problem == f"criu_prebuilt_dir is {tmp_path}, which lacks patched/BUILD.json on the controller."


def name_builds(*options: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs the role's program."""
    program = ROOT / "roles/criu/files/name_builds.py"
    given = ["--project", ROOT, "--platform", PLATFORM, "--tarball-sha256", "0a" * 32, *options]
    return subprocess.run([sys.executable, program, *given], capture_output=True, text=True, timeout=60, check=False)


def test_builds_are_named_as_the_build_names_them(tmp_path: Path) -> None:
    build = [ROOT / "native/build.sh", "digest", "--variant", "stock", "--tarball-sha256", "0a" * 32]
    told = subprocess.run([*build, "--platform", PLATFORM], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / f"criu-stock-{told}.tar.gz").touch()
    done = name_builds("--archives", tmp_path, "stock", "patched")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["digests"]["stock"] == told != found["digests"]["patched"]
    assert found["archived"] == ["stock"]


def test_given_builds_have_their_names_already(tmp_path: Path) -> None:
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock/BUILD.json").write_text(json.dumps({"digest": STOCK}), encoding="utf-8")
    done = name_builds("--archives", tmp_path / "none", "--prebuilt", tmp_path, "stock")
    assert json.loads(done.stdout) == {"digests": {"stock": STOCK}, "archived": []}


def test_a_build_without_a_name_is_an_error(tmp_path: Path) -> None:
    assert name_builds("--archives", tmp_path, "--prebuilt", tmp_path, "stock").returncode != 0
