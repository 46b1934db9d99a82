# SPDX-License-Identifier: GPL-3.0-or-later
"""Lanes: every error named at once, defaults filled in, one baseline; checkpoints shared by what restores them."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ckpt_lanes import ckpt_lanes, ckpt_restore_options
from ckpt_plan import ckpt_plan
from ckpt_restore import OPTIONS

from gpuckpt_report.records import schema, vocabulary

COLD = {"name": "cold", "start": "cold", "runtime": "podman"}
STOCK = {"name": "podman-stock", "start": "restore", "runtime": "podman", "build": "stock", "flags": ["--keep"]}
MAPPED = {**STOCK, "name": "podman-mapped", "build": "patched", "switches": {"CRIU_MAPPED_RESTORE": 1}}
TAR = {"name": "podman-tar", "start": "restore", "runtime": "podman", "source": "tar"}
DISK = {"name": "process-disk", "start": "restore", "runtime": "process", "source": "disk", "page_cache": "dropped"}
SERVER = {"name": "gpuckpt-reference", "command": ["serve"], "canary": {"prompt": "p", "max_tokens": 16}, "port": 18080}


def taken(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [checkpoint for instance in result["instances"] for checkpoint in instance["checkpoints"]]


def plan(*lanes: dict[str, Any], run_id: str = "r1", image_bytes: int = 0) -> dict[str, Any]:
    result: dict[str, Any] = ckpt_plan(ckpt_lanes(list(lanes)), SERVER, run_id, "/store", "/disk", image_bytes)
    return result


def test_defaults_are_filled_in_and_the_first_restore_lane_is_the_baseline() -> None:
    cold, stock = ckpt_lanes([COLD, STOCK])
    assert cold["baseline"] is False
    assert stock["baseline"] is True
    assert stock["source"] == "store"
    assert stock["checkpoint"] == {"build": "stock", "switches": {}}


def test_only_a_lane_of_the_patched_build_has_a_resident_pool() -> None:
    stock, pooled = ckpt_lanes([STOCK, {**MAPPED, "resident_pool": True}])
    assert (stock["resident_pool"], pooled["resident_pool"]) == (False, True)
    with pytest.raises(AnsibleFilterError, match="needs build: patched"):
        ckpt_lanes([{**TAR, "resident_pool": True}])  # without a build it is that of the link `current`


@pytest.mark.parametrize("source", ["tar", "tar.gz", "tar.zst"])
def test_a_bare_process_can_be_restored_from_an_archive(source: str) -> None:
    [lane] = ckpt_lanes([{**DISK, "source": source, "page_cache": "warm"}])
    assert (lane["runtime"], lane["source"]) == ("process", source)


def test_a_key_without_a_value_has_its_default() -> None:
    [lane] = ckpt_lanes([{**STOCK, "iterations": None, "description": None}])
    assert "iterations" not in lane
    assert lane["description"] == ""


def test_a_lane_with_a_wrong_value_is_still_asked_what_goes_together() -> None:
    with pytest.raises(AnsibleFilterError, match=r"2 error\(s\).*flags must be a list.*needs source: disk"):
        ckpt_lanes([{**STOCK, "flags": 3, "page_cache": "dropped"}])


def test_a_chosen_baseline_stays_and_a_filtered_one_is_replaced() -> None:
    chosen = {**TAR, "baseline": True}
    assert [lane["baseline"] for lane in ckpt_lanes([STOCK, chosen])] == [False, True]
    assert [lane["baseline"] for lane in ckpt_lanes([COLD, STOCK, MAPPED, chosen], "stock|mapped")] == [True, False]


def test_the_users_lanes_are_left_as_they_were() -> None:
    lanes = [dict(STOCK)]
    ckpt_lanes(lanes)
    assert lanes == [STOCK]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": "Podman_Stock"}, "name must be lower-case words"),
        ({"start": "warm"}, "start must be 'cold' or 'restore', not 'warm'"),
        ({"runtime": "docker"}, "runtime must be 'podman' or 'process', not 'docker'"),
        ({"build": "newest"}, "build must be 'stock', 'patched', 'distro' or 'current'"),
        ({"swiches": {}}, "swiches: unknown key, did you mean 'switches'?"),
        ({"switches": {"LD_PRELOAD": "x"}}, "switches.LD_PRELOAD must be the name of a switch, CRIU_*"),
        ({"switches": {"CRIU_X": [1]}}, "switches.CRIU_X must be text, a number, true or false, not [1]"),
        ({"flags": "--keep"}, "flags must be a list, not '--keep'"),
        ({"flags": [""]}, "flags.0 must not be empty"),
        ({"source": "zip"}, "source must be 'store', "),
        ({"page_cache": "dropped"}, "needs source: disk"),
        ({"resident_pool": "yes"}, "resident_pool must be true or false, not 'yes'"),
        ({"resident_pool": True}, "resident_pool: true needs build: patched"),
        ({"prefetch": True, "slimming": "kv-drop"}, "prefetch: true needs slimming: staged"),
        ({"start": "cold", "resident_pool": False}, "a cold start has no use for build, flags, resident_pool"),
        ({"iterations": 0}, "iterations must be at least 1, not 0"),
        ({"iterations": "3"}, "iterations must be a whole number, not '3'"),
        ({"checkpoint": {"bild": "stock"}}, "checkpoint.bild: unknown key, did you mean 'build'?"),
        ({"checkpoint": {"x": 1}}, "checkpoint.x: unknown key (known: build, switches)"),
        ({"checkpoint": {"build": "old"}}, "checkpoint.build must be 'stock', "),
        ({"start": "cold"}, "a cold start has no use for build, flags"),
        ({"server": "vllm"}, "server must be a dictionary"),
    ],
)
def test_each_error_is_named_with_its_lane(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        ckpt_lanes([{**STOCK, **change}])
    assert expected in str(caught.value)
    assert repr({**STOCK, **change}["name"]) in str(caught.value)


def test_all_errors_come_in_one_message() -> None:
    wrong = {"name": "a", "start": "x", "runtime": "y"}
    with pytest.raises(AnsibleFilterError) as caught:
        ckpt_lanes([wrong, {"name": "a"}, 7, {**STOCK, "baseline": True}, {**TAR, "baseline": True}])
    for part in (
        "start must be",
        "runtime must be",
        "start is missing",
        "'a' is named twice",
        "lanes[2] must be",
        "only one lane can be",
    ):
        assert part in str(caught.value)


def test_a_filter_without_a_match_names_the_lanes_there_are() -> None:
    with pytest.raises(AnsibleFilterError, match=r"matches no lane; there are: cold, podman-stock"):
        ckpt_lanes([COLD, STOCK], "gpu")
    with pytest.raises(AnsibleFilterError, match="no regular expression"):
        ckpt_lanes([COLD], "(")


def test_lanes_that_agree_share_a_checkpoint_and_others_do_not() -> None:
    result = plan(COLD, STOCK, MAPPED, TAR, {**TAR, "name": "slim", "slimming": "sleep1"})
    shared = [checkpoint["lanes"] for checkpoint in taken(result)]
    assert shared == [["podman-stock", "podman-mapped"], ["podman-tar"], ["slim"]]
    lanes = result["lanes"]
    assert lanes["podman-stock"]["checkpoint_dir"] == lanes["podman-mapped"]["checkpoint_dir"]
    assert lanes["cold"]["checkpoint_id"] is None
    names = [checkpoint["server"]["name"] for checkpoint in taken(result)] + [lanes["cold"]["server"]["name"]]
    assert len(set(names)) == len(names)


def test_archives_are_taken_of_one_server_and_checkpoints_in_place_of_their_own() -> None:
    result = plan(STOCK, TAR, {**TAR, "name": "zst", "source": "tar.zst"}, DISK)
    assert [len(instance["checkpoints"]) for instance in result["instances"]] == [1, 2, 1]
    archives = result["instances"][1]
    assert {result["lanes"][lane]["server"]["name"] for lane in ("podman-tar", "zst")} == {archives["server"]["name"]}
    assert [checkpoint["number"] for checkpoint in taken(result)] == [0, 1, 2, 3]


def test_a_bare_process_is_started_once_for_all_its_checkpoints() -> None:
    base = {"start": "restore", "runtime": "process"}
    slim = [{**base, "name": mode, "slimming": mode} for mode in ("none", "sleep1", "kv-drop")]
    other = {**base, "name": "other", "server": {"extra_args": ["--more"]}}
    result = plan(*slim, other)
    assert [len(instance["checkpoints"]) for instance in result["instances"]] == [3, 1]
    assert len({checkpoint["dir"] for checkpoint in taken(result)}) == 4
    assert len({result["lanes"][name]["server"]["name"] for name in ("none", "sleep1", "kv-drop")}) == 1


def test_a_checkpoint_of_another_run_has_another_name() -> None:
    first, again, other = plan(STOCK), plan(STOCK), plan(STOCK, run_id="r2")
    assert first == again
    assert taken(first)[0]["id"] != taken(other)[0]["id"]


def test_space_is_counted_where_the_images_go() -> None:
    result = plan(STOCK, MAPPED, TAR, DISK, image_bytes=100)
    assert (result["store_bytes"], result["disk_bytes"]) == (200, 100)
    assert result["lanes"]["process-disk"]["checkpoint_dir"].startswith("/disk/process-disk-")
    unpacked = {**TAR, "name": "process-tar", "runtime": "process"}
    assert plan(TAR, unpacked, image_bytes=100)["store_bytes"] == 300, "an archive, and one with its images next to it"


def test_overrides_merge_and_extra_arguments_are_appended() -> None:
    changed = {**STOCK, "server": {"extra_args": ["--fast"], "canary": {"max_tokens": 4}, "port": 18081}}
    server = plan(changed)["instances"][0]["server"]
    assert server["command"] == ["serve", "--fast"]
    assert server["canary"] == {"prompt": "p", "max_tokens": 4}
    assert server["port"] == 18081
    assert SERVER["command"] == ["serve"]


@pytest.mark.parametrize("lane_filter", ["(", {}, 3, "a{99999999999}"])
def test_a_filter_that_is_no_expression_is_named(lane_filter):
    with pytest.raises(AnsibleFilterError, match="is no regular expression"):
        ckpt_lanes([{"name": "a", "start": "cold", "runtime": "process"}], lane_filter)


def test_a_lane_without_a_name_is_named():
    with pytest.raises(AnsibleFilterError, match="name must be text, not None"):
        ckpt_lanes([{"name": None, "start": "cold", "runtime": "process"}])


def test_a_key_that_is_no_text_of_unicode_is_named():
    with pytest.raises(AnsibleFilterError, match=r"1 error\(s\) in the lanes: lane 'a': .*'\\ud800'"):
        ckpt_lanes([{"name": "a", "start": "cold", "runtime": "process", "\ud800": 1}])


def test_a_lane_goes_to_the_restore_with_every_key_that_is_an_option_of_it() -> None:
    lane = {**STOCK, "build": "patched", "slimming": "staged", "prefetch": True, "resident_pool": True}
    assert ckpt_restore_options(ckpt_lanes([lane])[0]) == {
        "flags": ["--keep"],
        "slimming": "staged",
        "page_cache": "warm",
        "resident_pool": True,
        "prefetch": True,
    }
    # what took the checkpoint is another thing than where it lies
    assert set(schema.Lane.model_fields) & set(OPTIONS) - {"checkpoint"} == set(vocabulary.RESTORE_KEYS)
