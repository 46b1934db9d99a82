# SPDX-License-Identifier: GPL-3.0-or-later
"""A document of a publication is taken as it was written, and refused where it leads elsewhere; what is kept, and what goes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ansible.module_utils.ckpt.copies import keep, publication
from ansible.module_utils.ckpt.copies.parts import File
from ansible.module_utils.ckpt.copies.publication import Part, Publication
from ansible.module_utils.ckpt.parsing import FormatError

ME, OTHER = "0a1b2c3d", "ffffffff"
NOW = datetime(2026, 11, 29, tzinfo=UTC)
GOOD = Publication(
    name="one",
    instance="gpuckpt-golden-one-5e6f7081",
    version=f"000004-5e6f7081-{ME}",
    node=ME,
    host="gpu-a",
    made_at="2026-11-29T10:00:00+00:00",
    first_token_s=0.2,
    bytes=10,
    source="disk",
    identity={"kernel": "6.1"},
    part_bytes=8,
    files=[File("images/pages-1.img", 100, [[0, 5], [50, 5]]), File("checkpoint.json", 2, [[0, 2]])],
    parts=[Part(8, "aa"), Part(4, "bb")],
)


def content(found: Publication) -> bytes:
    return json.dumps(found.document()).encode()


def test_what_was_written_is_read() -> None:
    assert publication.parse(content(GOOD)) == GOOD


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"files": [File("../../etc/passwd", 2, [[0, 12]])]}, "no file of a checkpoint"),
        ({"files": [File("/etc/passwd", 12, [[0, 12]])]}, "no file of a checkpoint"),
        ({"files": [File("images/../../x", 12, [[0, 12]])]}, "no file of a checkpoint"),
        ({"files": [File("staged/../x", 12, [[0, 12]])]}, "no file of a checkpoint"),
        ({"files": [File("images/a", 12, [[0, 6]]), File("images/a", 12, [[0, 6]])]}, "twice"),
        ({"files": [File("images/a", 12, [[6, 6], [0, 6]])]}, "not in order"),
        ({"files": [File("images/a", 11, [[0, 12]])]}, "beyond its end"),
        ({"files": [File("images/a", 11, [[0, 11]])]}, "do not hold what its files do"),
        ({"parts": [Part(4, "aa"), Part(8, "bb")]}, "other sizes"),
        ({"part_bytes": 9 << 30}, "not what is published"),
        ({"name": "../one"}, "name cannot be one"),
        ({"instance": "a/b"}, "instance cannot be one"),
        ({"version": "4"}, "version cannot be one"),
    ],
)
def test_what_cannot_be_ours_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        publication.parse(content(replace(GOOD, **change)))


def test_damage_is_noticed() -> None:
    for wrong in (b"", b"{}", b"[]", content(GOOD)[:-20], content(GOOD).replace(b"6.1", b"6.2")):
        with pytest.raises(FormatError):
            publication.parse(wrong)


def listing(*versions: tuple[int, str, bool]) -> dict[str, int | None]:
    found: dict[str, int | None] = {"used/whoever": 3, "something/else": 1, "loose": 1}
    for sequence, node, complete in versions:
        version = publication.version_name(sequence, f"x-{sequence:08x}", node)
        found[f"{version}/part-00001"] = 8
        if complete:
            found[f"{version}/golden.json"] = 100
    return found


def test_versions_are_told_from_all_else_the_newest_first() -> None:
    found = publication.versions(listing((1, ME, True), (12, OTHER, True), (3, ME, False)))
    assert [(one.sequence, one.complete, one.node) for one in found] == [
        (12, True, OTHER),
        (3, False, ME),
        (1, True, ME),
    ]
    assert publication.instance_mark("gpuckpt-golden-x-0000000c") == found[0].instance_mark


def test_the_oldest_go_but_not_what_is_used() -> None:
    found = publication.versions(listing(*((number, ME, True) for number in range(1, 6)), (6, OTHER, False)))
    names = [one.version for one in found]
    gone = keep.surplus(found, 2, {names[-1]})
    assert [one.sequence for one in gone] == [2, 3]
    assert keep.surplus(found, 0, set()) == []
    assert keep.surplus(found, 9, set()) == []


def test_what_is_being_published_stays() -> None:
    found = publication.versions(
        listing((1, OTHER, False), (2, OTHER, False), (3, OTHER, False), (4, ME, False), (5, ME, False), (6, ME, True))
    )
    begun = {found[5].version: NOW - timedelta(days=30), found[4].version: NOW - timedelta(hours=3)}
    gone = keep.abandoned(found, ME, found[2].version, begun, NOW)
    assert [one.sequence for one in gone] == [5, 1], "of others what is old, of this node what it is not publishing"
    begun = {found[5].version: NOW + timedelta(days=30)}
    assert [one.sequence for one in keep.abandoned(found, ME, None, begun, NOW)] == [5, 4], (
        "a clock that is wrong removes nothing"
    )
    assert keep.moment("nonsense") is None
    assert keep.moment("2026-11-29T10:00:00") == datetime(2026, 11, 29, 10, tzinfo=UTC)
