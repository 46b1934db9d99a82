# SPDX-License-Identifier: GPL-3.0-or-later
"""Speaking to the server under test: health, the canary with its first and last token, counters."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.ckpt.errors import CkptError
from ansible.module_utils.ckpt.spec import Canary, ServerSpec

POLL_INTERVAL_S = 0.005
# On the loopback a connection is made at once, or its first packet fell into a network that is still being restored;
# the kernel would send the next one after a second.
CONNECT_TIMEOUT_S = 0.1
HEALTH_READ_TIMEOUT_S = 2.0
REQUEST_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Completion:
    """A streamed completion: its tokens, and the monotonic times (s) of request, first and last token."""

    tokens: list[str]
    requested: float
    first_token: float
    last_token: float

    def as_request(self) -> dict[str, Any]:
        """For a record: time to first token and duration in seconds, and the number of tokens."""
        return {
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
        if not tokens:
            return
        self.last_token = time.monotonic()
        if self.first_token is None:
            self.first_token = self.last_token
        self.tokens += tokens


class Client:
    """HTTP to one server; every request has a connection of its own, so that none is open at a checkpoint.

    The library is loaded beside what the module does first; `ready` waits for it.
    """

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec
        self._loaded: tuple[Any, Any] | None = None
        self._loader = threading.Thread(target=self._load, daemon=True)
        self._loader.start()

    def ready(self) -> None:
        """Wait until requests can be made: call it before a clock starts. Raises CkptError (bad_input) without httpx."""
        self._loader.join()
        if self._loaded is None:
            raise CkptError(
                "bad_input",
                "the Python of this node has no httpx; install it "
                "(package python3-httpx, or the role inference_server).",
            )

    @property
    def _httpx(self) -> Any:
        return self._library()[0]

    @property
    def _http(self) -> Any:
        return self._library()[1]

    def _library(self) -> tuple[Any, Any]:
        self.ready()
        assert self._loaded is not None
        return self._loaded

    def _load(self) -> None:
        try:
            httpx = _import_httpx()
        except ImportError:
            return
        http = httpx.Client(
            base_url=self.spec.base_url,
            timeout=httpx.Timeout(REQUEST_TIMEOUT_S, connect=5.0),
            headers={"Connection": "close"},
            # plain HTTP: whoever verifies certificates reads all of the system's first, at every call of a module
            transport=httpx.HTTPTransport(verify=False, limits=httpx.Limits(max_keepalive_connections=0)),
            trust_env=False,
        )
        self._loaded = (httpx, http)

    def healthy(self) -> bool:
        """Whether the server answers 200 now."""
        timeout = self._httpx.Timeout(HEALTH_READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            return bool(self._http.get(self.spec.health_path, timeout=timeout).status_code == 200)
        except self._httpx.HTTPError:
            return False

    def wait_healthy(self, check: Callable[[], None], timeout_s: float | None = None) -> float:
        """Poll until the server is healthy, and return that time on the monotonic clock in seconds.

        `check` is called between polls, and raises what should end the wait.
        Raises CkptError (server_unhealthy) after the timeout.
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
            "see the server's log lines, or raise server.health_timeout_s.",
        )

    def complete(self, canary: Canary) -> Completion:
        """Send a completion and stream the answer. Raises CkptError (server_unhealthy) if it fails."""
        body = {
            "model": self.spec.model,
            "prompt": canary.prompt,
            "max_tokens": canary.max_tokens,
            "temperature": canary.temperature,
            "stream": True,
            **canary.extra,
        }
        stream = _Stream()
        requested = time.monotonic()
        try:
            with self._http.stream("POST", self.spec.completions_path, json=body) as response:
                if response.status_code != 200:
                    raise self._refused(response.status_code, response.read())
                for event in _events(response.iter_lines()):
                    stream.add(event_tokens(event))
        except self._httpx.HTTPError as error:
            raise CkptError(
                "server_unhealthy",
                f"the server broke off a completion ({type(error).__name__}: {error}); see its log lines.",
            ) from error
        if stream.first_token is None or stream.last_token is None:
            raise CkptError("server_unhealthy", "the server ended a completion without any token; see its log lines.")
        return Completion(stream.tokens, requested, stream.first_token, stream.last_token)

    def counter(self) -> int | None:
        """Finished requests as the server counts them in memory; None if it does not say."""
        try:
            response = self._http.get(self.spec.counter_path)
        except self._httpx.HTTPError:
            return None
        return metric_total(response.text, self.spec.counter_metric) if response.status_code == 200 else None

    def counter_reaches(self, expected: int, timeout_s: float = 2.0) -> int | None:
        """The counter, read until it reaches `expected` or the time is over (some servers count with a delay)."""
        deadline = time.monotonic() + timeout_s
        value = self.counter()
        while value is not None and value < expected and time.monotonic() < deadline:
            time.sleep(0.02)
            value = self.counter()
        return value

    def post(self, path: str, body: Any = None, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """POST a control request. Raises CkptError (server_unhealthy) unless the answer is a success."""
        try:
            response = self._http.post(path, json=body, timeout=timeout_s)
        except self._httpx.HTTPError as error:
            raise CkptError(
                "server_unhealthy", f"POST {path} failed ({type(error).__name__}: {error}); see the server's log lines."
            ) from error
        if not 200 <= response.status_code < 300:
            raise self._refused(response.status_code, response.content, path)

    def _refused(self, status: int, content: bytes, path: str | None = None) -> CkptError:
        text = content.decode("utf-8", "replace").strip()[:300]
        return CkptError(
            "server_unhealthy",
            f"{path or self.spec.completions_path} answered {status}: {text or 'without a text'}; "
            "check server.model and what the server supports.",
        )


def _import_httpx() -> Any:
    """httpx without its command line, which imports click, rich and pygments: a third of the time."""
    hidden = "click" not in sys.modules
    if hidden:
        sys.modules["click"] = None  # type: ignore[assignment]
    try:
        import httpx
    finally:
        if hidden:
            del sys.modules["click"]
    return httpx


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data:"):
            data = line[5:].strip()
            if data == "[DONE]":
                return
            yield json.loads(data)


def event_tokens(event: dict[str, Any]) -> list[str]:
    """The tokens of one event of a completion stream: their numbers where the server tells them, else the text."""
    tokens: list[str] = []
    for choice in event.get("choices") or []:
        if choice.get("token_ids"):
            tokens += [str(number) for number in choice["token_ids"]]
        elif choice.get("text"):
            tokens.append(str(choice["text"]))
    return tokens


def metric_total(text: str, name: str) -> int | None:
    """Sum over all labels of a Prometheus counter; None if the text does not hold it."""
    pattern = re.compile(rf"^{re.escape(name)}(?:\{{[^}}]*\}})?\s+(\S+)", re.MULTILINE)
    values = [float(value) for value in pattern.findall(text)]
    return round(sum(values)) if values else None
