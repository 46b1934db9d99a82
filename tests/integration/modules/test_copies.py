# SPDX-License-Identifier: GPL-3.0-or-later
"""A golden checkpoint that was published, forgotten and fetched is restored, and answers as before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import Call, Result
from test_golden import complete, golden, served, status

pytestmark = pytest.mark.integration
__all__ = ["golden"]


@pytest.fixture
def remote(disk: Path) -> Result:
    """A folder for copies."""
    if shutil.which("rclone") is None:
        pytest.skip("needs rclone: run `make deps`")
    return {"rclone": str(disk), "node": "here"}


@pytest.mark.parametrize(("server", "source"), [("process", "disk"), ("podman", "tar")], indirect=["server"])
def test_what_was_fetched_is_served(call: Call, golden: Result, remote: Result, tmp_path: Path, source: str) -> None:
    golden["source"] = source
    if source == "tar":
        golden["flags"] = []
    name, port = golden["name"], golden["server"]["port"]
    made = call("ckpt_golden", **golden)["golden"]
    with served(golden, tmp_path / "log"):
        said = complete(port)
    published = call("ckpt_publish", name=name, part_mib=4, **remote)
    assert (published["reason"], published["changed"]) == (None, True), published
    assert call("ckpt_golden", name=name, state="absent")["changed"]
    assert list(Path(golden["folder"]).iterdir()) == []

    fetched = call("ckpt_fetch", **golden, **remote)
    assert (fetched["reason"], fetched["version"]) == (None, published["version"]), fetched
    assert fetched["because"] == ["there is no golden checkpoint yet"]
    again = call("ckpt_fetch", **golden, **remote)
    assert (again["changed"], again["reason"]) == (False, None)
    assert call("ckpt_golden", **golden)["changed"] is False, "what was fetched is as good as made"
    with served(golden, tmp_path / "log"):
        serving = status(name)
        assert serving["serving"]["mode"] == "restored", (tmp_path / "log").read_text()
        assert serving["golden"]["instance"] == made["instance"]
        assert complete(port) == said


@pytest.mark.parametrize("server", ["process"], indirect=True)
def test_a_server_that_is_served_keeps_its_checkpoint(
    call: Call, golden: Result, remote: Result, tmp_path: Path
) -> None:
    name = golden["name"]
    call("ckpt_golden", **golden)
    first = call("ckpt_publish", name=name, part_mib=4, **remote)["version"]
    old = call("ckpt_golden", **golden, force=True)["golden"]
    with served(golden, tmp_path / "log"):
        waits = call("ckpt_fetch", **golden, **remote, version=first)
        assert waits["reason"] == "server_running"
        assert complete(golden["server"]["port"])
        assert status(name)["golden"]["instance"] == old["instance"]
    fetched = call("ckpt_fetch", **golden, **remote, version=first)
    assert (fetched["reason"], fetched["moved_bytes"]) == (None, 0), fetched
    with served(golden, tmp_path / "log"):
        assert status(name)["serving"]["mode"] == "restored", (tmp_path / "log").read_text()


@pytest.mark.parametrize("server", ["podman"], indirect=True)
def test_one_that_is_bound_to_its_container_is_not_published(call: Call, golden: Result, remote: Result) -> None:
    call("ckpt_golden", **golden)
    refused = call("ckpt_publish", name=golden["name"], **remote)
    assert refused["reason"] == "bad_input"
    assert "restored into the very container" in refused["msg"]
