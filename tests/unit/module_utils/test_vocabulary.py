# SPDX-License-Identifier: GPL-3.0-or-later
"""The words: whoever offers or implements them has all of them; and the rules of a lane."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.ckpt import runtimes, vocabulary
from ansible.module_utils.ckpt.checkpoints import archive, manifest
from ansible.module_utils.ckpt.runtimes import podman
from ansible.module_utils.ckpt.server import slimming
from project import ROOT

from gpuckpt_report.records import vocabulary as of_the_reports
from gpuckpt_report.records.schema import Lane, LaneCheckpoint

RESTORE: dict[str, Any] = {"name": "a", "start": "restore", "runtime": "podman"}
COLD: dict[str, Any] = {"name": "a", "start": "cold", "runtime": "podman"}


def arguments_of(role: str) -> dict[str, Any]:
    """The options of a role's entry point `main`."""
    text = (ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8")
    options: dict[str, Any] = yaml.safe_load(text)["argument_specs"]["main"]["options"]
    return options


def test_the_reports_read_the_same_file_wherever_the_project_lies() -> None:
    link = ROOT / "reports" / "gpuckpt_report" / "records" / "vocabulary.py"
    assert not link.readlink().is_absolute()
    assert link.resolve() == Path(vocabulary.__file__).resolve() == Path(of_the_reports.__file__).resolve()


@pytest.mark.parametrize(
    ("has", "words"),
    [
        (runtimes.RUNTIMES, vocabulary.RUNTIMES),
        (vocabulary.RUNTIME_TRAITS, vocabulary.RUNTIMES),
        (manifest.ARCHIVE_NAMES, vocabulary.ARCHIVES),
        (podman.COMPRESSION, vocabulary.ARCHIVES),
        # `staged` is only what a server says it is
        ([*slimming.BEFORE, "staged"], vocabulary.SLIMMINGS),
        ([*slimming.AFTER, "staged"], vocabulary.SLIMMINGS),
    ],
)
def test_each_word_is_implemented(has: Iterable[str], words: tuple[str, ...]) -> None:
    assert sorted(has) == sorted(words)


@pytest.mark.parametrize("source", vocabulary.ARCHIVES)
def test_a_bare_process_knows_each_archive(source: str) -> None:
    name = manifest.Layout("/store", source).archive
    assert name is not None
    assert Path(name).suffix in archive.COMPRESSORS


@pytest.mark.parametrize(
    ("role", "option", "words"),
    [
        ("checkpoint_bench", "checkpoint_bench_verify", vocabulary.LEVELS),
    ],
)
def test_a_role_offers_each_word(role: str, option: str, words: tuple[str, ...]) -> None:
    """Ansible reads choices as they are written; those of modules are compared with their documentation by a linter."""
    assert arguments_of(role)[option]["choices"] == list(words)


def test_the_server_of_the_role_runs_where_there_is_a_runtime() -> None:
    assert set(arguments_of("inference_server")["inference_server_runtime"]["choices"]) <= set(vocabulary.RUNTIMES)


def test_each_key_of_a_lane_and_each_of_its_words_is_documented() -> None:
    text = " ".join(arguments_of("checkpoint_bench")["checkpoint_bench_lanes"]["description"])
    keys = [*Lane.model_fields, *LaneCheckpoint.model_fields]
    assert [key for key in keys if f"C({key})" not in text and f"C({key}=" not in text] == []
    lists = (vocabulary.BUILDS, vocabulary.SLIMMINGS, vocabulary.SOURCES, vocabulary.PAGE_CACHE_STATES)
    assert [word for words in lists for word in words if f"V({word})" not in text] == []


@pytest.mark.parametrize(
    ("lane", "problem"),
    [
        ({**COLD, "build": "stock", "flags": []}, "a cold start has no use for build, flags"),
        ({**COLD, "server": {"port": 1}, "iterations": 3, "baseline": True, "description": "d"}, None),
        ({**RESTORE, "page_cache": "dropped"}, "page_cache: dropped needs source: disk"),
        ({**RESTORE, "page_cache": "dropped", "source": "tar"}, "page_cache: dropped needs source: disk"),
        ({**RESTORE, "page_cache": "dropped", "source": "disk"}, None),
        ({**RESTORE, "page_cache": "warm"}, None),
        ({**RESTORE, "resident_pool": True}, "resident_pool: true needs build: patched"),
        ({**RESTORE, "resident_pool": True, "build": "current"}, "resident_pool: true needs build: patched"),
        ({**RESTORE, "resident_pool": True, "build": "patched"}, None),
        ({**RESTORE, "resident_pool": False, "build": "stock"}, None),
        ({**RESTORE, "prefetch": True, "slimming": "kv-drop"}, "prefetch: true needs slimming: staged"),
        ({**RESTORE, "prefetch": True, "slimming": "staged"}, None),
    ],
)
def test_what_goes_together(lane: dict[str, Any], problem: str | None) -> None:
    found = vocabulary.lane_problems(lane)
    assert found == [] if problem is None else found[0].startswith(problem)


@pytest.mark.parametrize("runtime", vocabulary.RUNTIMES)
@pytest.mark.parametrize("source", vocabulary.SOURCES)
def test_each_runtime_restores_from_each_source(runtime: str, source: str) -> None:
    assert vocabulary.lane_problems({**RESTORE, "runtime": runtime, "source": source}) == []


def test_each_broken_rule_is_told() -> None:
    lane = {**RESTORE, "page_cache": "dropped", "resident_pool": True, "prefetch": True}
    assert len(vocabulary.lane_problems(lane)) == 3


def test_names_and_baselines_are_looked_at_together() -> None:
    assert vocabulary.set_problems([("a", True), ("b", False)]) == []
    assert vocabulary.set_problems([("a", True), ("b", True), ("a", False)]) == [
        "lane 'a' is named twice",
        "only one lane can be the baseline, not a, b",
    ]
