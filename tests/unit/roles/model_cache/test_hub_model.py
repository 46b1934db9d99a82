# SPDX-License-Identifier: GPL-3.0-or-later
"""The download of a model, by the hub's own client from a fake hub on loopback.

The fake speaks what huggingface_hub asks of a hub: a commit with its files and digests, and tokens. Small files come from the
hub itself, large ones by a redirect to a store on another port, with ranges. It knows one repository, and no Xet.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from project import ROOT

SCRIPT = ROOT / "roles" / "model_cache" / "files" / "hub_model.py"
REPOSITORY = "example/small"
REVISION = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_tests_alone"
WEIGHTS = bytes(range(256)) * 4096
CONFIG = b'{"architectures": ["Qwen2ForCausalLM"]}\n'


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class FakeHub:
    """What the hub holds, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(
        default_factory=lambda: {"config.json": CONFIG, "model.safetensors": WEIGHTS, "README.md": b"not for serving\n"}
    )
    token: str | None = None
    # answers of the store that end half-way
    interruptions: int = 0
    # what the store delivers instead of the weights
    instead: bytes | None = None
    # method, path, Authorization
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    hub_url: str = ""
    store_url: str = ""

    def is_large(self, name: str) -> bool:
        return name.endswith(".safetensors")

    def sibling(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        if not self.is_large(name):
            return {"rfilename": name, "size": len(content), "blobId": git_digest(content)}
        lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return {"rfilename": name, "size": len(content), "blobId": git_digest(b"pointer"), "lfs": lfs}

    def entry(self, name: str) -> dict[str, Any]:
        sibling = self.sibling(name)
        entry = {"type": "file", "path": name, "size": sibling["size"], "oid": sibling["blobId"]}
        if "lfs" in sibling:
            lfs = sibling["lfs"]
            entry["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        return entry

    def requests(self, path: str, method: str = "GET") -> int:
        return sum(1 for asked in self.asked if asked[0] == method and asked[1].endswith(path))


class Handler(BaseHTTPRequestHandler):
    """Answers of the hub and of the store; the subclass of a server tells which it is."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_GET(self) -> None:
        self.note()
        self.answer()

    def do_HEAD(self) -> None:
        self.note()
        self.answer()

    def note(self) -> None:
        path = self.path.split("?")[0]
        self.hub.asked.append((self.command, path, self.headers.get("Authorization")))

    def answer(self) -> None:
        raise NotImplementedError

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class HubHandler(Handler):
    def answer(self) -> None:
        hub, path = self.hub, self.path.split("?")[0]
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            # the hub hides what is not public: it does not say whether there is such a repository
            return self.reply(401, b"{}", X_Error_Message="Invalid username or password.")
        if not re.search(rf"/{REPOSITORY}(/|$)", path):
            return self.reply(404, b"{}", X_Error_Code="RepoNotFound")
        if REVISION not in path:
            return self.reply(404, b"{}", X_Error_Code="RevisionNotFound")
        if path.startswith("/api/") and "/tree/" in path:
            return self.reply(200, json.dumps([hub.entry(name) for name in hub.files]).encode())
        if path.startswith("/api/"):
            siblings = [hub.sibling(name) for name in hub.files]
            return self.reply(200, json.dumps({"id": REPOSITORY, "sha": REVISION, "siblings": siblings}).encode())
        return self.resolve(path.rsplit("/", 1)[1])

    def resolve(self, name: str) -> None:
        content = self.hub.files[name]
        if not self.hub.is_large(name):
            return self.reply(200, content, ETag=f'"{git_digest(content)}"', X_Repo_Commit=REVISION)
        digest = hashlib.sha256(content).hexdigest()
        headers = {"Location": f"{self.hub.store_url}/{digest}", "X_Repo_Commit": REVISION}
        return self.reply(302, **headers, X_Linked_Etag=f'"{digest}"', X_Linked_Size=str(len(content)))


class StoreHandler(Handler):
    def answer(self) -> None:
        content = self.hub.instead or WEIGHTS
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        part = content[first:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(part)))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.interruptions > 0:
            self.hub.interruptions -= 1
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return
        self.wfile.write(part)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    fake = FakeHub()
    servers = [
        ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"hub": fake}))
        for handler in (HubHandler, StoreHandler)
    ]
    fake.hub_url, fake.store_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield fake
    for server in servers:
        server.shutdown()
        server.server_close()


@dataclass
class Downloaded:
    """What the program said, and where the model is to lie."""

    status: int
    output: str
    errors: str
    dest: Path

    @property
    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.dest.iterdir()} if self.dest.exists() else {}

    @property
    def hidden(self) -> list[str]:
        return sorted(path.name for path in self.dest.parent.iterdir() if path != self.dest)


def download(hub: FakeHub, folder: Path, *options: str, revision: str = REVISION, name: str = REPOSITORY) -> Downloaded:
    dest = folder / "models" / "small"
    command = [sys.executable, str(SCRIPT), f"--repository={name}", f"--revision={revision}", *options, str(dest)]
    own = {"HF_ENDPOINT": hub.hub_url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    rest = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(command, env={**rest, **own}, capture_output=True, text=True, timeout=120, check=False)
    return Downloaded(done.returncode, done.stdout, done.stderr, dest)


def token_file(folder: Path, token: str) -> str:
    path = folder / "token"
    path.write_text(f"{token}\n")
    return f"--token-file={path}"


def test_a_commit_arrives_whole_and_is_named(hub: FakeHub, tmp_path: Path) -> None:
    got = download(hub, tmp_path)
    assert got.status == 0, got.errors
    assert json.loads(got.output.splitlines()[-1]) == {"changed": True}
    mark = json.loads(got.files["gpuckpt-model.json"])
    assert {name: got.files[name] for name in mark["sha256"]} == {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    assert set(got.files) == {*mark["sha256"], "gpuckpt-model.json"}
    assert mark["sha256"]["model.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert (mark["repository"], mark["revision"]) == (REPOSITORY, REVISION)
    assert got.hidden == []


def test_the_second_call_asks_nothing(hub: FakeHub, tmp_path: Path) -> None:
    download(hub, tmp_path)
    hub.asked.clear()
    got = download(hub, tmp_path)
    assert (got.status, json.loads(got.output)) == (0, {"changed": False})
    assert hub.asked == []


def test_another_commit_does_not_take_the_place_of_a_model(hub: FakeHub, tmp_path: Path) -> None:
    download(hub, tmp_path)
    got = download(hub, tmp_path, revision="f" * 40)
    assert got.status == 1
    assert "holds another model" in got.errors


def test_an_interrupted_file_is_asked_for_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.interruptions = 1
    got = download(hub, tmp_path)
    assert got.status == 0, got.errors
    assert got.files["model.safetensors"] == WEIGHTS
    assert hub.requests(hashlib.sha256(WEIGHTS).hexdigest()) == 2


def test_what_arrived_before_a_failure_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.instead = WEIGHTS[: len(WEIGHTS) // 2]
    got = download(hub, tmp_path)
    assert got.status == 1
    assert got.files == {}
    assert got.hidden == [f".small-{REVISION}"]
    assert "provision again" in got.errors
    assert "Traceback" not in got.errors
    hub.instead = None
    hub.asked.clear()
    got = download(hub, tmp_path)
    assert got.status == 0, got.errors
    assert got.files["model.safetensors"] == WEIGHTS
    assert hub.requests("/config.json") == 0
    assert got.hidden == []


def test_bytes_that_are_not_the_hubs_are_refused_by_name_and_fetched_anew(hub: FakeHub, tmp_path: Path) -> None:
    hub.instead = bytes(len(WEIGHTS))
    got = download(hub, tmp_path)
    assert got.status == 1
    assert "model.safetensors did not arrive as the hub has it" in got.errors
    assert got.files == {}
    hub.instead = None
    assert download(hub, tmp_path).files["model.safetensors"] == WEIGHTS


def test_a_hub_that_went_away_leaves_no_half_model(hub: FakeHub, tmp_path: Path) -> None:
    hub.instead = bytes(len(WEIGHTS))
    download(hub, tmp_path)
    hub.instead, hub.token = None, "withdrawn meanwhile"
    got = download(hub, tmp_path)
    assert got.status == 1
    assert got.files == {}


def test_a_private_model_needs_a_token(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = TOKEN
    got = download(hub, tmp_path)
    assert got.status == 1
    assert "HTTP 401" in got.errors
    assert "model_cache_token_file" in got.errors
    assert "Traceback" not in got.errors
    assert got.hidden == []


def test_the_token_reaches_the_hub_and_nobody_else(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = TOKEN
    got = download(hub, tmp_path, token_file(tmp_path, TOKEN))
    assert got.status == 0, got.errors
    store = [asked for asked in hub.asked if "/resolve/" not in asked[1] and not asked[1].startswith("/api/")]
    assert store
    assert [asked[2] for asked in store] == [None] * len(store)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "token"]
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in got.output + got.errors


def test_a_wrong_token_is_refused_and_not_shown(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = TOKEN
    got = download(hub, tmp_path, token_file(tmp_path, "hf_of_somebody_else"))
    assert got.status == 1
    assert "HTTP 401" in got.errors
    assert "hf_of_somebody_else" not in got.output + got.errors


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"revision": "f" * 40}, "no such repository or commit"),
        ({"name": "example/other"}, "no such repository or commit"),
    ],
)
def test_what_the_hub_does_not_have_is_said(
    hub: FakeHub, tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    got = download(hub, tmp_path, **changed)
    assert got.status == 1
    assert message in got.errors
    assert len(got.errors.splitlines()) == 1, got.errors


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("", "is empty")])
def test_a_token_file_that_holds_none_is_named(hub: FakeHub, tmp_path: Path, content: str | None, message: str) -> None:
    option = f"--token-file={tmp_path / 'none'}" if content is None else token_file(tmp_path, content)
    got = download(hub, tmp_path, option)
    assert got.status == 1
    assert message in got.errors
    assert len(got.errors.splitlines()) == 1, got.errors
    assert hub.asked == []


def test_a_repository_without_a_model_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files["config.json"]
    got = download(hub, tmp_path)
    assert got.status == 1
    assert "no config.json" in got.errors
