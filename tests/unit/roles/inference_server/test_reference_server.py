# SPDX-License-Identifier: GPL-3.0-or-later
"""The reference server: its weights, its tokens, and its interface, over real HTTP."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.measure import probe
from ansible.module_utils.ckpt.server.client import Client
from ansible.module_utils.ckpt.server.slimming import slim, wake
from ansible.module_utils.ckpt.server.spec import parse_server
from project import ROOT

SOURCE = ROOT / "roles/inference_server/files/gpuckpt_reference_server.py"


@pytest.fixture(scope="module")
def server_module() -> ModuleType:
    specification = importlib.util.spec_from_file_location("gpuckpt_reference_server", SOURCE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(server_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "2.bin"
    server_module.make_weights(str(path), 2)
    return path


@pytest.fixture
def model(server_module: ModuleType, weights: Path) -> Any:
    model = server_module.Model(str(weights), kv_mib=1)
    model.load()
    model.allocate_kv_cache()
    return model


@pytest.fixture
def url(server_module: ModuleType, weights: Path) -> Iterator[str]:
    """A server of this process."""
    engine = server_module.Engine(server_module.Model(str(weights), kv_mib=1), "m")
    handler = type("Handler", (server_module.Handler,), {"engine": engine})
    server = server_module.Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    assert httpx.get(f"{address}/health").status_code == 503
    engine.start()
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


def client(url: str) -> Client:
    port = int(url.rsplit(":", 1)[1])
    server = {"name": "n", "kind": "reference", "model": "m", "port": port, "command": ["x"]}
    return Client(parse_server(server, "process"))


def test_weights_are_the_same_for_the_same_seed(server_module: ModuleType, weights: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.bin"
    digest = server_module.make_weights(str(again), 2)
    assert again.read_bytes() == weights.read_bytes()
    assert digest == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert server_module.make_weights(str(again), 2, seed=1) != digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.bin", "again.bin.sha256"]


def test_every_page_that_is_damaged_changes_the_tokens(model: Any) -> None:
    expected = list(model.tokens("prompt", 16))
    assert list(model.tokens("prompt", 16)) == expected
    for page in range(0, len(model.weights), 4096):
        kept = model.weights[page : page + 4096]
        model.weights[page : page + 4096] = bytes(4096)
        assert list(model.tokens("prompt", 16)) != expected, f"page at {page}"
        model.weights[page : page + 4096] = kept


def test_damaged_weights_file_is_refused(server_module: ModuleType, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"\0" + weights.read_bytes()[1:])
    (tmp_path / "w.bin.sha256").write_text((weights.parent / "2.bin.sha256").read_text())
    with pytest.raises(ValueError, match="make it again"):
        server_module.Model(str(path), 0).load()


def test_streamed_and_whole_answers_agree(url: str) -> None:
    body = {"model": "m", "prompt": "hello", "max_tokens": 8, "temperature": 0}
    whole = httpx.post(f"{url}/v1/completions", json=body).json()
    spec_canary = parse_server(
        {"name": "n", "kind": "reference", "model": "m", "port": 1, "command": ["x"], "canary": body_canary(body)},
        "process",
    ).canary
    streamed = client(url).complete(spec_canary)
    assert len(streamed.tokens) == 8
    assert "".join(streamed.tokens) == whole["choices"][0]["text"]
    assert whole["usage"]["completion_tokens"] == 8
    assert streamed.requested < streamed.first_token <= streamed.last_token


def body_canary(body: dict[str, Any]) -> dict[str, Any]:
    return {key: body[key] for key in ("prompt", "max_tokens", "temperature")}


def test_the_counter_counts_completions_only(url: str) -> None:
    speaker = client(url)
    before = speaker.counter()
    assert before is not None
    speaker.complete(speaker_canary())
    httpx.get(f"{url}/v1/models")
    assert speaker.counter_reaches(before + 1) == before + 1


def speaker_canary() -> Any:
    return parse_server({"name": "n", "kind": "reference", "model": "m", "port": 1, "command": ["x"]}, "process").canary


def test_temperature_makes_answers_differ_unless_seeded(url: str) -> None:
    def answer(**change: Any) -> str:
        body = {"prompt": "x", "max_tokens": 16, "temperature": 1, **change}
        return httpx.post(f"{url}/v1/completions", json=body).json()["choices"][0]["text"]

    assert answer() != answer()
    assert answer(seed=5) == answer(seed=5) != answer(seed=6)


def test_it_is_reseeded_without_another_greedy_answer(url: str) -> None:
    body = {"prompt": "x", "max_tokens": 8, "temperature": 0}
    before = httpx.post(f"{url}/v1/completions", json=body).json()
    assert httpx.post(f"{url}/reseed", json={}).status_code == 200
    after = httpx.post(f"{url}/v1/completions", json=body).json()
    assert after["choices"] == before["choices"]
    assert after["id"] != before["id"]


@pytest.mark.parametrize(
    ("content", "status", "param"),
    [
        (b'{"prompt":', 400, None),
        (b"[]", 400, None),
        (b"{}", 400, "prompt"),
        (b'{"prompt": "a", "max_tokens": 0}', 400, "max_tokens"),
        (b'{"prompt": "a", "max_tokens": true}', 400, "max_tokens"),
        (b'{"prompt": "a", "temperature": 3}', 400, "temperature"),
        (b'{"prompt": "a", "stream": "yes"}', 400, "stream"),
        (b'{"prompt": "a", "model": "other"}', 404, "model"),
    ],
)
def test_bad_requests_are_refused_in_openais_shape(url: str, content: bytes, status: int, param: str | None) -> None:
    response = httpx.post(f"{url}/v1/completions", content=content)
    assert response.status_code == status
    error = json.loads(response.text)["error"]
    assert error["message"]
    assert error["param"] == param


def test_unknown_path(url: str) -> None:
    assert httpx.get(f"{url}/nothing").status_code == 404


@pytest.mark.parametrize("mode", ["sleep1", "sleep2", "kv-drop"])
def test_it_sleeps_and_wakes_as_vllm_does(url: str, mode: str) -> None:
    speaker = client(url)
    before = speaker.complete(speaker_canary()).tokens
    slim(speaker, mode)
    assert httpx.get(f"{url}/is_sleeping").json() == {"is_sleeping": True}
    assert httpx.post(f"{url}/v1/completions", json={"prompt": "a"}).status_code == 503
    wake(speaker, mode)
    assert httpx.get(f"{url}/is_sleeping").json() == {"is_sleeping": False}
    assert speaker.complete(speaker_canary()).tokens == before
    digest = httpx.get(f"{url}/debug/digest").json()
    assert digest["equal"]
    assert digest["kv_cache"]


def test_a_stream_that_nobody_reads_does_not_hold_up_another(url: str) -> None:
    """Several requests at a time are served on threads of their own."""
    address = httpx.URL(url)
    body = json.dumps({"prompt": "slow", "max_tokens": 4096, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with socket.socket() as slow:
        # so little room that the server cannot write the whole answer
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect((address.host, address.port))
        slow.sendall(head.encode() + body)
        assert slow.recv(16).startswith(b"HTTP/1.1 200")
        speaker = client(url)
        assert len(speaker.complete(speaker_canary()).tokens) == 16
        assert speaker.counter() == 1, "the slow one had ended already, and nothing was shown"


def test_several_requests_at_a_time_have_prompts_and_times_of_their_own(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    server = {"name": "n", "kind": "reference", "model": "m", "port": port, "command": ["x"]}
    up_at_s = time.monotonic() - 5
    params = {
        "runtime": "process",
        "server": server,
        "requests": 6,
        "concurrency": 3,
        "max_tokens": 7,
        "timeout_s": None,
        "bill": {"started": "cold", "up_at_s": up_at_s, "at_s": 0.0},
    }
    operation, options = probe.begin("probe", params)
    probe.run(operation, options)
    found = operation.record.as_dict([])
    assert [request["tokens"] for request in found["requests"]] == [7] * 6
    assert [request["requested_s"] for request in found["requests"]] == sorted(
        request["requested_s"] for request in found["requests"]
    )
    assert found["counter"]["after"] == found["counter"]["before"] + 6
    assert found["bill"]["at_s"] >= 5
    assert found["bill"] | {"at_s": 0} == {
        "started": "cold",
        "asked_s": 0.0,
        "at_s": 0,
        "concurrency": 3,
        "max_tokens": 7,
    }
    spec = operation.spec
    assert len({spec.load_prompt(number, 7).prompt for number in range(6)}) == 6


def test_one_request_of_several_that_fails_fails_the_probe(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    server = {"name": "n", "kind": "reference", "model": "another", "port": port, "command": ["x"]}
    params = {"runtime": "process", "server": server, "requests": 4, "concurrency": 2, "max_tokens": 7}
    params |= {"timeout_s": None, "bill": None}
    operation, options = probe.begin("probe", params)
    with pytest.raises(CkptError, match="the model `another` does not exist"):
        probe.run(operation, options)


@pytest.mark.parametrize("wrong", [{"requests": 0}, {"concurrency": 0}, {"max_tokens": 0}])
def test_a_probe_of_nothing_is_refused(wrong: dict[str, int]) -> None:
    server = {"name": "n", "kind": "reference", "model": "m", "port": 1, "command": ["x"]}
    params = {"runtime": "process", "server": server, "requests": 1, "concurrency": 1, "max_tokens": None, "bill": None}
    with pytest.raises(CkptError, match="must be 1 or more"):
        probe.begin("probe", params | wrong)
