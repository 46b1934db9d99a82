# SPDX-License-Identifier: GPL-3.0-or-later
"""Which settings role model_cache refuses."""

from __future__ import annotations

from typing import Any

import pytest
from project import filters_of

ROLE = filters_of("model_cache")
ASKED: dict[str, Any] = {
    "name": "Tiny-1.5_b",
    "source": "hub",
    "path": "",
    "repository": "owner/model",
    "revision": "0a" * 20,
    "sha256": {"config.json": "0a" * 32},
}


@pytest.mark.parametrize(
    "change", [{}, {"source": "synthetic", "revision": ""}, {"source": "path", "path": "/models/x", "sha256": {}}]
)
def test_settings_that_can_work_are_taken(change: dict[str, Any]) -> None:
    assert ROLE.model_cache_problems({**ASKED, **change}) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../x"}, "model_cache_name is ../x; use letters, digits, dots, - and _."),
        ({"name": ".hidden"}, "model_cache_name is .hidden;"),
        ({"name": ""}, "model_cache_name is ;"),
        ({"name": "x\n"}, "model_cache_name is x\n;"),
        ({"source": "path"}, "model_cache_source is path, but model_cache_path is empty."),
        ({"revision": ""}, "model_cache_revision is empty. Name a commit of owner/model (40 hexadecimal digits)."),
        ({"revision": "main"}, "model_cache_revision is main. Name a commit"),
        ({"revision": "0A" * 20}, "model_cache_revision is 0A0A"),
        (
            {"sha256": {"a": "0a" * 32, "b": "0a", "c": None}},
            "model_cache_sha256 has values that are no SHA-256: b, c.",
        ),
    ],
)
def test_each_mistake_is_named(change: dict[str, Any], said: str) -> None:
    [problem] = ROLE.model_cache_problems({**ASKED, **change})
    assert problem.startswith(said)


def test_all_mistakes_are_named_at_once() -> None:
    assert len(ROLE.model_cache_problems({**ASKED, "name": "/", "revision": "", "sha256": {"a": ""}})) == 3
