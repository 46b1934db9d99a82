# SPDX-License-Identifier: GPL-3.0-or-later
"""The client against servers that answer what no server should: real connections, prepared bytes."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.ckpt.checkpoints.manifest import Manifest
from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.measure import restore
from ansible.module_utils.ckpt.measure.record import Record
from ansible.module_utils.ckpt.server import client as http
from ansible.module_utils.ckpt.server.client import Client, metric_total
from ansible.module_utils.ckpt.server.spec import parse_server
from ansible.module_utils.ckpt.system.procfs import open_tcp_connections

OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
STREAM = OK + b"Content-Type: text/event-stream\r\n\r\n"
Answering = Callable[..., Client]


def client(port: int, **change: Any) -> Client:
    server = {"name": "n", "kind": "reference", "model": "m", "port": port, "command": ["x"], **change}
    return Client(parse_server(server, "process"))


@pytest.fixture
def asked() -> list[bytes]:
    """What the fake server was sent, one entry for each connection."""
    return []


@pytest.fixture
def answering(asked: list[bytes]) -> Iterator[Answering]:
    """Fake server: whatever it is asked, it sends the given bytes and closes the connection."""
    listeners: list[socket.socket] = []

    def serve(listener: socket.socket, answer: bytes) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                number = len(asked)
                asked.append(connection.recv(1 << 16))
                # the client may be gone before the end of what it does not want
                with suppress(OSError):
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    while more := connection.recv(1 << 16):
                        asked[number] += more

    def start(answer: bytes, **change: Any) -> Client:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, answer), daemon=True).start()
        return client(listener.getsockname()[1], **change)

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def closed_port() -> int:
    """A port on which nobody listens any more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


@pytest.mark.parametrize(("kind", "salts"), [("vllm", 2), ("reference", 0)])
def test_requests_to_a_server_with_a_prefix_cache_are_kept_apart(
    answering: Answering, asked: list[bytes], kind: str, salts: int
) -> None:
    token = {"choices": [{"text": "a", "token_ids": [1]}]}
    for _ in range(2):
        server = answering(STREAM + event(token) + b"data: [DONE]\n\n", kind=kind, env={"VLLM_SERVER_DEV_MODE": "1"})
        server.complete(server.spec.canary)
    bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in asked]
    found = [body.pop("cache_salt") for body in bodies if "cache_salt" in body]
    assert len(set(found)) == len(found) == salts
    assert bodies[0] == bodies[1]


def test_a_stream_as_vllm_sends_it(answering: Answering) -> None:
    answer = STREAM + event({"choices": [{"text": "a", "token_ids": [7, 8]}]}) + event({"choices": [{"text": "b"}]})
    speaker = answering(answer + b"data: [DONE]\n\ndata: not read any more")
    assert speaker.complete(speaker.spec.canary).tokens == ["7", "8", "b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"data: {garbled\n\n", "is not JSON"),
        (b"data: \xff\xfe\n\n", "is not JSON"),
        (b'data: "text"\n\n', "another type"),
        (b'data: {"choices": 3}\n\n', "choices must be a list"),
        (b'data: {"choices": [{"text": ["a"]}]}\n\n', "text must be text"),
        (b'data: {"choices": [{"token_ids": [1.5]}]}\n\n', "must be a whole number"),
        (b'data: {"choices": [{"text": "\\ud800"}]}\n\n', "surrogates"),
        (b"data: " + b"[" * 100000 + b"\n\n", "nested too deeply"),
        (b'data: {"choices": NaN}\n\n', "NaN"),
        (b"data: " + b"x" * (http.LINE_BYTES + 1), "has a line longer"),
        (b'data: {"error": {"message": "EngineDeadError"}}\n\n', "EngineDeadError"),
        (b"data: [DONE]\n\n", "without any token"),
    ],
)
def test_a_garbled_stream_is_the_servers_fault(answering: Answering, content: bytes, words: str) -> None:
    speaker = answering(STREAM + content)
    with pytest.raises(CkptError, match=words) as caught:
        speaker.complete(speaker.spec.canary)
    assert caught.value.reason == "server_unhealthy"
    assert caught.value.message.count("\n") == 0


QUESTION = {"path": "/embed", "body": {"input": ["a {prompt} b"], "n": "{max_tokens}"}, "field": "data.0.value"}


def test_a_question_has_the_canary_in_its_places_and_one_field_for_an_answer() -> None:
    asked: list[bytes] = []
    answer = OK + b"\r\n" + json.dumps({"data": [{"value": {"y": 2.5, "x": [1]}}]}).encode()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            received = b""
            while not received.endswith(b"}"):
                received += connection.recv(1 << 16)
            asked.append(received)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        speaker = client(listener.getsockname()[1], kind="command", question=QUESTION)
        completion = speaker.complete(speaker.spec.canary)
        server.join()
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /embed ")
    assert json.loads(body) == {"input": ["a The quick brown fox b"], "n": 16}
    assert completion.tokens == ['{"x": [1], "y": 2.5}']
    assert completion.requested <= completion.first_token == completion.last_token


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no json", "is not JSON"),
        (b"[]", r"has no field data.0.value \(at data\)"),
        (b'{"data": []}', r"has no field data.0.value \(at 0\)"),
        (b'{"data": "text"}', r"has no field data.0.value \(at 0\)"),
        (b'{"data": [{"value": ""}]}', "has nothing in the field"),
        (b'{"data": [{"value": null}]}', "has nothing in the field"),
    ],
)
def test_an_answer_without_the_field_is_named(answering: Answering, content: bytes, words: str) -> None:
    speaker = answering(OK + b"\r\n" + content, kind="command", question=QUESTION)
    with pytest.raises(CkptError, match=f"the answer of /embed .*{words}"):
        speaker.complete(speaker.spec.canary)


def test_a_server_without_a_counter_is_not_asked_for_one() -> None:
    assert client(closed_port(), kind="command").counter() is None


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"nonsense"])
def test_an_encoding_that_nobody_asked_for_is_not_unpacked(answering: Answering, encoding: bytes) -> None:
    speaker = answering(OK + b"Content-Encoding: " + encoding + b"\r\n\r\n" + b"\x1f\x8b" + bytes(64))
    with pytest.raises(CkptError, match="without any token"):
        speaker.complete(speaker.spec.canary)


def test_a_character_set_that_is_no_text_does_not_matter(answering: Answering) -> None:
    """`hex` is a codec of Python that makes bytes of bytes."""
    speaker = answering(
        OK + b"Content-Type: text/event-stream; charset=hex\r\n\r\n" + event({"choices": [{"text": "a"}]})
    )
    assert speaker.complete(speaker.spec.canary).tokens == ["a"]


@pytest.mark.parametrize(
    "answer", [STREAM + b"data: {garbled\n\n", STREAM + b"data: [DONE]\n\n", OK + b"Content-Length: x\r\n\r\n"]
)
def test_no_connection_outlives_a_refusal(answering: Answering, answer: bytes) -> None:
    """A checkpoint of whoever holds it would meet it."""
    server = answering(answer)
    with pytest.raises(CkptError) as caught:
        server.complete(server.spec.canary)
    assert [row for row in open_tcp_connections([os.getpid()]) if row.endswith(f":{server.spec.port}")] == []
    assert caught.traceback, "what it holds is held until here"


def test_an_answer_without_end_is_not_kept(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "ANSWER_BYTES", 1 << 20)
    speaker = answering(OK + b"\r\n" + b"x" * (2 << 20))
    assert not speaker.healthy()
    with pytest.raises(CkptError, match="longer than 1 MiB"):
        speaker.counter()
    with pytest.raises(CkptError, match="longer than 1 MiB"):
        speaker.post("/sleep")


def test_an_answer_that_takes_too_long_in_all_ends(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = answering(STREAM + event({"choices": [{"text": "a"}]}))
    monkeypatch.setattr(http, "REQUEST_TIMEOUT_S", -1.0)
    with pytest.raises(CkptError, match="did not end in time"):
        speaker.complete(speaker.spec.canary)


@pytest.mark.parametrize("answer", [b"", b"\0\0\0\0", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"])
def test_no_http_at_all(answering: Answering, answer: bytes) -> None:
    speaker = answering(answer)
    assert not speaker.healthy()
    for ask in (speaker.counter, lambda: speaker.complete(speaker.spec.canary), lambda: speaker.post("/sleep")):
        with pytest.raises(CkptError) as caught:
            ask()
        assert caught.value.reason == "server_unhealthy"


def test_a_counter_that_is_not_told_differs_from_a_server_that_does_not_answer(answering: Answering) -> None:
    assert answering(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n").counter() is None
    assert answering(OK + b"\r\nother_total 3\n").counter() is None
    assert answering(OK + b"\r\ngpuckpt_requests_total 3\n").counter() == 3
    with pytest.raises(CkptError, match="GET /metrics failed") as caught:
        client(closed_port()).counter_reaches(1)
    assert caught.value.reason == "server_unhealthy"


@pytest.mark.parametrize(
    ("option", "words"),
    [("server.health_timeout_s", "or raise server.health_timeout_s"), ("timeout_s", "or raise timeout_s"), (None, "")],
)
def test_only_the_limit_that_was_waited_for_is_named(option: str | None, words: str) -> None:
    with pytest.raises(CkptError) as caught:
        client(closed_port()).wait_healthy(lambda: None, 0.01, option)
    assert words in caught.value.message
    assert ("raise" in caught.value.message) is bool(words)


@pytest.mark.parametrize("host", ["999.1.1.1", "[::x]", "[1::2::3]", "a..b", "a" * 64, "a b", "a/b"])
def test_a_host_that_no_request_can_have(host: str) -> None:
    with pytest.raises(CkptError) as caught:
        client(80, host=host)
    assert caught.value.reason == "bad_input"
    assert "server.host" in caught.value.message


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ('n_total 1\nn_total{a="b"} 2\nn_total_created 1e9\n', 3),
        ('n_total{path="/{id}",q="\\"}"} 4 # {trace="x"} 1\n', 4),
        ("n_total{" * 10000, None),
        ("n_total NaN\n", None),
        ("n_total +Inf\n", None),
        ("n_total 1e300\n", None),
        ("n_total many\n", None),
        ("", None),
    ],
)
def test_sums_of_a_counter(text: str, total: int | None) -> None:
    assert metric_total(text, "n_total") == total


def test_a_counter_that_is_not_answered_is_not_lost() -> None:
    silent, record = client(closed_port()), Record("restore", {})
    operation: Any = SimpleNamespace(client=silent, spec=silent.spec, record=record)
    proof = Manifest("golden", "process", "reference", "2026-01-01T00:00:00+00:00", counter=3)
    error = restore._compare_counter(operation, proof)
    assert error is not None
    assert error.reason == "server_unhealthy"
    record.judge()
    assert record.failure is None, "the counter itself was not compared"
