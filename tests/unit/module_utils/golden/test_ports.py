# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers on one node do not take each other's ports."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.golden import wanted
from ansible.module_utils.ckpt.golden.wanted import Wanted, parse_address


@pytest.fixture(autouse=True)
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wanted, "FOLDER", str(tmp_path))


def server(name: str, port: int, listen: str = "") -> Wanted:
    description = {"name": name, "kind": "reference", "model": "m", "port": port, "command": ["x"]}
    return Wanted(name, "process", description, "/var/lib/gpuckpt/golden", listen=listen)


@pytest.mark.parametrize(
    ("other", "port"),
    [
        (server("two", 18080), 18080),
        (server("two", 18081, "19080"), 19080),
        (server("two", 19080), 19080),
        (server("two", 18081, "[::]:18080"), 18080),
    ],
)
def test_a_port_that_another_server_has_is_named(other: Wanted, port: int) -> None:
    server("one", 18080, "127.0.0.1:19080").write()
    with pytest.raises(CkptError, match=f"port {port} of two is taken by the server one") as caught:
        other.require_apart()
    assert caught.value.reason == "port_taken"


def test_others_do_not_matter(tmp_path: Path) -> None:
    one = server("one", 18080, "127.0.0.1:19080")
    one.write()
    one.require_apart()
    server("two", 18081, "127.0.0.1:19081").require_apart()
    server("three", 18082, "/run/three.socket").require_apart()
    (tmp_path / "broken.json").write_text("{")
    server("two", 18081).require_apart()


def test_addresses() -> None:
    assert parse_address("127.0.0.1:19080") == ("127.0.0.1", 19080)
    assert parse_address("[::1]:19080") == ("::1", 19080)
    assert parse_address("19080") == ("127.0.0.1", 19080)
    assert parse_address("a-host:1") == ("a-host", 1)


@pytest.mark.parametrize("text", ["", "x", "host:", "127.0.0.1:0", "127.0.0.1:65536", "::1:80", "/run/socket", "a b:1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(CkptError, match="is no address to listen on") as caught:
        parse_address(text)
    assert caught.value.reason == "bad_input"
