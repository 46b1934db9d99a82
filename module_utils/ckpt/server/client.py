# SPDX-License-Identifier: GPL-3.0-or-later
"""Speaking to the server under test: health, the canary with its first and last token, counters."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from ..errors import CkptError
from ..parsing import MAX_NUMBER, FormatError, parse_json, pick
from .exchange import Answer, ExchangeError, ask, load
from .spec import Canary, Question, ServerSpec

SALT_BYTES = 32
POLL_INTERVAL_S = 0.005
# On the loopback a connection is made at once, or its first packet fell into a network that is still being restored.
# Then the kernel would send the next one after a second.
IMMEDIATE_S = 0.1
CONNECT_TIMEOUT_S = 5.0
HEALTH_READ_TIMEOUT_S = 2.0
REQUEST_TIMEOUT_S = 120.0
# how long a server may be silent in the midst of an answer
SILENCE_S = 120.0
MEMORY_DIGEST_TIMEOUT_S = 600.0
# What a server under test answers is far smaller. One that never ends its answer must not fill the node's memory.
LINE_BYTES = 1 << 20
ANSWER_BYTES = 64 << 20


@dataclass(frozen=True)
class Completion:
    """A streamed completion: its tokens, and the monotonic times (s) of request, first and last token."""

    tokens: list[str]
    requested: float
    first_token: float
    last_token: float

    def as_request(self, since: float | None = None) -> dict[str, Any]:
        """For a record: time to first token and duration in seconds, and the number of tokens.

        :param since: T0 on the monotonic clock (s); with it the moment of the request is noted, too
        """
        moment = {} if since is None else {"requested_s": round(self.requested - since, 6)}
        return moment | {
            "ttft_s": self.first_token - self.requested,
            "duration_s": self.last_token - self.requested,
            "tokens": len(self.tokens),
        }


@dataclass
class _Stream:
    tokens: list[str] = field(default_factory=list)
    first_token: float | None = None
    last_token: float | None = None

    def add(self, tokens: list[str]) -> None:
        """Takes the tokens that have just come, and notes when."""
        if not tokens:
            return
        self.last_token = time.monotonic()
        if self.first_token is None:
            self.first_token = self.last_token
        self.tokens += tokens


class Client:
    """HTTP to one server; every request has a connection of its own, so that none is open at a checkpoint."""

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec

    def ready(self) -> None:
        """Loads what requests need, which the first request would do: call it before a clock starts."""
        load()

    def healthy(self) -> bool:
        """Whether the server answers 200 now."""
        try:
            status, _ = self._exchange("GET", self.spec.health_path, HEALTH_READ_TIMEOUT_S, IMMEDIATE_S)
        except (ExchangeError, FormatError):
            return False
        return status == 200

    def wait_healthy(
        self,
        check: Callable[[], None],
        timeout_s: float | None = None,
        option: str | None = "server.health_timeout_s",
    ) -> float:
        """Polls until the server is healthy, and returns that time on the monotonic clock in seconds.

        `check` is called between polls, and raises what should end the wait.
        Raises CkptError (server_unhealthy) after the timeout.

        :param timeout_s: seconds to wait; server.health_timeout_s if it is left out.
        :param option: what the user may raise to wait longer, None if nothing does.
        """
        limit = self.spec.health_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if self.healthy():
                return time.monotonic()
            check()
            time.sleep(POLL_INTERVAL_S)
        raise CkptError(
            "server_unhealthy",
            f"{self.spec.base_url}{self.spec.health_path} did not answer 200 within {limit:g} s; "
            f"see the server's log lines{f', or raise {option}' if option else ''}.",
        )

    def complete(self, canary: Canary) -> Completion:
        """Sends a completion and streams the answer, or asks the server's own question.

        Raises CkptError (server_unhealthy) if it fails.
        """
        if self.spec.question is not None:
            return self._ask(self.spec.question, canary)
        body = {
            "model": self.spec.model,
            "prompt": canary.prompt,
            "max_tokens": canary.max_tokens,
            "temperature": canary.temperature,
            "stream": True,
            **canary.extra,
        }
        if self.spec.engine.salt_field:
            body[self.spec.engine.salt_field] = secrets.token_hex(SALT_BYTES)
        stream = _Stream()
        requested = time.monotonic()
        try:
            with self._ask_for("POST", self.spec.completions_path, body) as answer:
                pieces = _limited(answer.pieces(), requested + REQUEST_TIMEOUT_S)
                if answer.status != 200:
                    raise self._refused(answer.status, b"".join(pieces))
                for event in _events(_lines(pieces)):
                    stream.add(event_tokens(event))
        except ExchangeError as error:
            raise CkptError(
                "server_unhealthy", f"the server broke off a completion ({error}); see its log lines."
            ) from error
        except FormatError as error:
            raise CkptError(
                "server_unhealthy",
                f"the server's answer to a completion {error}; see its log lines, and that server.completions_path "
                "is that of an OpenAI-compatible server.",
            ) from error
        if stream.first_token is None or stream.last_token is None:
            raise CkptError("server_unhealthy", "the server ended a completion without any token; see its log lines.")
        return Completion(stream.tokens, requested, stream.first_token, stream.last_token)

    def _ask(self, question: Question, canary: Canary) -> Completion:
        """The field of one answer that is not streamed: a single token, whose time is that of the whole answer."""
        requested = time.monotonic()
        try:
            status, content = self._exchange("POST", question.path, body=_filled(question.body, canary))
            answered = time.monotonic()
            if status != 200:
                raise self._refused(status, content, question.path)
            value = _field_of(parse_json(content), question.field)
        except ExchangeError as error:
            raise _unanswered("POST", question.path, error) from error
        except FormatError as error:
            raise CkptError(
                "server_unhealthy",
                f"the answer of {question.path} {error}; correct server.question, or see the server's log lines.",
            ) from error
        return Completion([value], requested, answered, answered)

    def counter(self) -> int | None:
        """What the server counts in memory; None if nothing is named that it counts, or if it answers and does not say.

        Raises CkptError (server_unhealthy) if it does not answer.
        """
        if not self.spec.counter_metric:
            return None
        path = self.spec.counter_path
        try:
            status, content = self._exchange("GET", path)
        except (ExchangeError, FormatError) as error:
            raise _unanswered("GET", path, error) from error
        return metric_total(content.decode("utf-8", "replace"), self.spec.counter_metric) if status == 200 else None

    def counter_reaches(self, expected: int, timeout_s: float = 2.0) -> int | None:
        """The counter, read until it reaches `expected` or the time is over (some servers count with a delay).

        Raises CkptError (server_unhealthy) if the server does not answer.
        """
        deadline = time.monotonic() + timeout_s
        value = self.counter()
        while value is not None and value < expected and time.monotonic() < deadline:
            time.sleep(0.02)
            value = self.counter()
        return value

    def memory_digest(self) -> str | None:
        """What the server itself answers as a digest of its memory; None if servers of its kind do not tell one.

        Raises CkptError (server_unhealthy) if it does not answer.
        """
        path, limit = self.spec.engine.memory_digest_path, MEMORY_DIGEST_TIMEOUT_S
        if path is None:
            return None
        try:
            status, content = self._exchange("GET", path, limit)
        except (ExchangeError, FormatError) as error:
            raise _unanswered("GET", path, error) from error
        if status != 200:
            raise self._refused(status, content, path)
        return content.decode("utf-8", "replace")

    def post(self, path: str, body: Any = None, timeout_s: float = REQUEST_TIMEOUT_S, secret: bool = False) -> None:
        """Sends a control request by POST. Raises CkptError (server_unhealthy) unless the answer is a success.

        :param secret: the answer is not told in an error, since it may repeat what was sent
        """
        try:
            status, content = self._exchange("POST", path, timeout_s, body=body)
        except (ExchangeError, FormatError) as error:
            raise _unanswered("POST", path, error) from error
        if not 200 <= status < 300:
            raise self._refused(status, b"" if secret else content, path)

    def _exchange(
        self,
        method: str,
        path: str,
        limit_s: float = REQUEST_TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        body: Any = None,
    ) -> tuple[int, bytes]:
        """Status and content of an answer. Raises ExchangeError, and FormatError if it is too long or takes too long."""
        deadline = time.monotonic() + limit_s
        with self._ask_for(method, path, body, connect_timeout_s, limit_s) as answer:
            return answer.status, b"".join(_limited(answer.pieces(), deadline))

    def _ask_for(
        self,
        method: str,
        path: str,
        body: Any,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        timeout_s: float = SILENCE_S,
    ) -> AbstractContextManager[Answer]:
        return ask(self.spec.host, self.spec.port, method, path, body, connect_timeout_s, timeout_s)

    def _refused(self, status: int, content: bytes, path: str | None = None) -> CkptError:
        text = content.decode("utf-8", "replace").strip()[:300]
        return CkptError(
            "server_unhealthy",
            f"{path or self.spec.completions_path} answered {status}: {text or 'without a text'}; "
            "check server.model and what the server supports.",
        )


def _filled(value: Any, canary: Canary) -> Any:
    """The body of a question, with the canary's prompt and number of tokens in their places."""
    if isinstance(value, Mapping):
        return {key: _filled(item, canary) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, canary) for item in value]
    if value == "{max_tokens}":
        return canary.max_tokens
    return value.replace("{prompt}", canary.prompt) if isinstance(value, str) else value


def _field_of(document: Any, way: str) -> str:
    """A field of an answer as text. Raises FormatError if the answer has no such field, or none with a value."""
    value = document
    for step in way.split("."):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise FormatError(f"has no field {way} (at {step})") from None
    if value in (None, "", [], {}):
        raise FormatError(f"has nothing in the field {way}")
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _unanswered(method: str, path: str, error: Exception) -> CkptError:
    what = str(error) if isinstance(error, FormatError) else f"failed ({error})"
    return CkptError("server_unhealthy", f"{method} {path} {what}; see the server's log lines.")


def _limited(pieces: Iterator[bytes], deadline: float) -> Iterator[bytes]:
    """The pieces of an answer. Raises FormatError when they are too many, or still come at the deadline."""
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > ANSWER_BYTES:
            raise FormatError(f"is longer than {ANSWER_BYTES >> 20} MiB")
        if time.monotonic() > deadline:
            raise FormatError("did not end in time")
        yield piece


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of an answer as they come. Raises FormatError for one that is too long."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        if len(rest) > LINE_BYTES:
            raise FormatError(f"has a line longer than {LINE_BYTES >> 10} KiB")
    yield rest


def _events(lines: Iterator[bytes]) -> Iterator[Any]:
    """The documents of a stream of server-sent events. Raises FormatError if one is not JSON."""
    for line in lines:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield parse_json(data)


def event_tokens(event: Any) -> list[str]:
    """The tokens of one event of a completion stream: their numbers where the server tells them, else the text.

    Raises FormatError if it is no event of a completion, with the server's own words if it reports an error.
    """
    if complaint := pick(event, "error", kind=Any, default=None):
        raise FormatError(f"reports an error: {complaint!s:.300}")
    tokens: list[str] = []
    for choice in pick(event, "choices", kind=list[dict[str, Any]], default=[]):
        numbers = pick(choice, "token_ids", kind=list[int], default=[])
        text = pick(choice, "text", kind=str, default="")
        tokens += [str(number) for number in numbers] or ([text] if text else [])
    return tokens


def metric_total(text: str, name: str) -> int | None:
    """Sum over all labels of a Prometheus counter; None if the text does not hold it, or holds no number there."""
    label = r'[^"}\n]|"(?:[^"\\\n]|\\.)*"'
    pattern = re.compile(rf"^{re.escape(name)}(?:\{{(?:{label})*\}})?[ \t]+(\S+)", re.MULTILINE)
    try:
        values = [float(value) for value in pattern.findall(text)]
    except ValueError:
        return None
    total = sum(values)
    return round(total) if values and abs(total) < MAX_NUMBER else None
