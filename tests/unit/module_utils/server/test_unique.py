# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes into the requests that make a restored server unique."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.server.client import Client
from ansible.module_utils.ckpt.server.spec import parse_server
from ansible.module_utils.ckpt.server.unique import filled, make_unique

SERVER = {"name": "n", "kind": "reference", "model": "m", "port": 1, "command": ["x"]}


def test_random_values_are_drawn_anew_each_time() -> None:
    body = {"seed": "{random}", "args": ["{number}", "a {random} b"], "n": 3, "as": "it {is}"}
    first, second = filled(body), filled(body)
    assert len(first["seed"]) == 32
    assert first["seed"] != second["seed"]
    assert first["args"][1] != second["args"][1]
    assert 0 <= first["args"][0] < 1 << 31
    assert (first["n"], first["as"]) == (3, "it {is}")


def test_a_file_of_the_node_is_sent(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s{random}t\n")
    assert filled([f"Bearer {{file:{secret}}}"]) == ["Bearer s{random}t"], "what is in the file is no place itself"
    with pytest.raises(CkptError, match="cannot be read on this node") as caught:
        filled({"key": f"{{file:{tmp_path}/none}}"})
    assert caught.value.reason == "bad_input"


class Repeating(http.server.BaseHTTPRequestHandler):
    """A server that refuses, and repeats what it was sent."""

    def do_POST(self) -> None:
        self.send_response(400)
        self.end_headers()
        self.wfile.write(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, format: str, *args: Any) -> None:
        """Not in the tests' output."""


def test_a_secret_is_not_in_the_error_of_a_server_that_repeats_it(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush")
    with http.server.HTTPServer(("127.0.0.1", 0), Repeating) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        unique = [["/key", {"key": f"{{file:{secret}}}"}]]
        client = Client(parse_server({**SERVER, "port": server.server_port, "unique": unique}, "process"))
        with pytest.raises(CkptError) as caught:
            make_unique(client)
        server.shutdown()
    assert "/key answered 400" in caught.value.message
    assert "hush" not in json.dumps([caught.value.message, caught.value.log_lines])


@pytest.mark.parametrize("unique", ["/reseed", [["reseed", {}]], [["/reseed"]], [["//host/x", {}]], [3]])
def test_what_is_no_list_of_requests_is_named(unique: Any) -> None:
    with pytest.raises(CkptError, match=r"server.unique must be a list of \[path, body\]"):
        parse_server({**SERVER, "unique": unique}, "process")
