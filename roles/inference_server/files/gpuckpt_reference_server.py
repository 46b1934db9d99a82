#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reference inference server: OpenAI-compatible, standard library only, no GPU.

It stands in for a real inference server where there is none, and is fair about it. A cold start pays for the
interpreter, for loading the weights, for checking their digest and for a warm-up. Every token reads one byte of every
page of the weights, so that a page damaged by a checkpoint changes the answer.

It speaks the part of vLLM's interface that gpuckpt uses (/health, /v1/completions, /metrics, /sleep, /wake_up,
/is_sleeping, /collective_rpc), and /reseed. The request counter is in memory only, and no file is open once it is ready.
Each connection is served on a thread of one single process. Python 3.9 or newer.
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import json
import mmap
import os
import random
import signal
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

MIB = 1 << 20
PAGE_BYTES = mmap.PAGESIZE
WEIGHTS_SEED = 20240229
WARM_UP_TOKENS = 32
MAX_BODY_BYTES = 4 * MIB
MAX_TOKENS_LIMIT = 4096
IDLE_CONNECTION_S = 30
CONSONANTS = "bcdfghjklmnprstv"
VOWELS = "aeiouy"


class RequestError(Exception):
    """What is wrong with a request, as the OpenAI interface reports it."""

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, kind: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


def digest_path(path: str) -> str:
    """Path of the file that holds the sha256 of the weights file `path`."""
    return path + ".sha256"


def make_weights(path: str, mib: int, seed: int = WEIGHTS_SEED) -> str:
    """Writes `mib` MiB of incompressible bytes, the same for the same seed, and their sha256 next to them.

    Both files appear whole or not at all. Returns the digest (hexadecimal).
    """
    generator = random.Random(seed)
    digest = hashlib.sha256()
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    scratch = f"{path}.{os.getpid()}.partial"
    try:
        with open(scratch, "wb") as out:
            for _ in range(mib):
                chunk = generator.randbytes(MIB)
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        with open(scratch + ".sha256", "w", encoding="ascii") as sums:
            sums.write(f"{digest.hexdigest()}  {os.path.basename(path)}\n")
        os.replace(scratch, path)
        os.replace(scratch + ".sha256", digest_path(path))
    finally:
        for leftover in (scratch, scratch + ".sha256"):
            if os.path.exists(leftover):
                os.unlink(leftover)
    return digest.hexdigest()


class Model:
    """Weights in plain anonymous memory, and the tokens computed from them."""

    def __init__(self, path: str, kv_mib: int) -> None:
        self.path = path
        self.kv_bytes = kv_mib * MIB
        self.weights: bytearray | None = None  # None before the start, and in sleep level 2
        self.kv_cache: bytearray | None = None
        self.expected_digest: str | None = None

    def _loaded(self) -> bytearray:
        if self.weights is None:
            raise ValueError("the weights are not loaded")
        return self.weights

    def load(self) -> None:
        """Reads the weights and checks them. Raises OSError or ValueError with the cause and the fix."""
        with open(digest_path(self.path), encoding="ascii") as sums:
            self.expected_digest = sums.read().split()[0]
        size = os.path.getsize(self.path)
        if size < PAGE_BYTES:
            raise ValueError(f"the weights file {self.path} holds {size} bytes only; make it again with --make-weights")
        weights = bytearray(size)
        digest = hashlib.sha256()
        view = memoryview(weights)
        filled = 0
        with open(self.path, "rb", buffering=0) as source:
            while filled < size:
                count = source.readinto(view[filled : filled + 4 * MIB])
                if not count:
                    raise ValueError(f"the weights file {self.path} became shorter while it was read")
                digest.update(view[filled : filled + count])
                filled += count
        view.release()
        if digest.hexdigest() != self.expected_digest:
            raise ValueError(
                f"the weights file {self.path} has sha256 {digest.hexdigest()}, expected {self.expected_digest}; "
                "make it again with --make-weights"
            )
        self.weights = weights

    def allocate_kv_cache(self) -> None:
        """Fills the cache with bytes that a checkpoint cannot leave out (zero pages would be)."""
        weights = self._loaded()
        repeats = -(-self.kv_bytes // len(weights))
        self.kv_cache = (weights * repeats)[: self.kv_bytes]

    def digest(self) -> str:
        """sha256 of the weights as they lie in memory now."""
        return hashlib.sha256(self._loaded()).hexdigest()

    def kv_cache_digest(self) -> str | None:
        """sha256 of the KV cache as it lies in memory now; None without one."""
        return None if self.kv_cache is None else hashlib.sha256(self.kv_cache).hexdigest()

    def tokens(self, prompt: str, count: int, salt: bytes = b"") -> Iterator[str]:
        """Yields `count` tokens (strings). Without a salt the same prompt yields the same tokens."""
        state = hashlib.blake2b(prompt.encode("utf-8"), key=salt[:64], digest_size=32).digest()
        for _ in range(count):
            offset = int.from_bytes(state[:4], "little") % PAGE_BYTES
            one_byte_of_every_page = self._loaded()[offset::PAGE_BYTES]
            state = hashlib.blake2b(one_byte_of_every_page, key=state, digest_size=32).digest()
            yield token_text(state)


def token_text(state: bytes) -> str:
    """The word that stands for a decoder state."""
    syllables = 1 + state[0] % 3
    letters = [
        CONSONANTS[state[2 * i + 1] % len(CONSONANTS)] + VOWELS[state[2 * i + 2] % len(VOWELS)]
        for i in range(syllables)
    ]
    return " " + "".join(letters)


class Engine:
    """State of the server: readiness, sleep level and the counters, all of it in memory only."""

    def __init__(self, model: Model, model_name: str) -> None:
        self.model = model
        self.model_name = model_name
        self.ready = threading.Event()
        self.lock = threading.Lock()
        self.started_at = int(time.time())
        self.requests_total = 0
        self.tokens_total = 0
        self.asleep: set[str] = set()
        # in memory, as a real engine has them: servers restored from one checkpoint go on alike until they are reseeded
        self.chance = random.Random(os.urandom(32))

    def reseed(self) -> None:
        """Takes new random numbers from the kernel; answers at temperature 0 do not depend on them."""
        with self.lock:
            self.chance.seed(os.urandom(32))

    def draw(self, count: int) -> bytes:
        """Random bytes, for the sampler and for identities of requests."""
        with self.lock:
            return self.chance.randbytes(count)

    def start(self) -> None:
        """Loads, warm up, and only then report ready."""
        self.model.load()
        self.model.allocate_kv_cache()
        for _ in self.model.tokens("warm-up", WARM_UP_TOKENS):
            pass
        self.ready.set()

    def count(self, tokens: int) -> None:
        """One finished request of `tokens` tokens."""
        with self.lock:
            self.requests_total += 1
            self.tokens_total += tokens

    def sleep(self, level: int | None) -> None:
        """Level 1 gives up the KV cache, level 2 the weights too (they stay on disk)."""
        if level not in (1, 2):
            raise RequestError("level must be 1 or 2", param="level")
        with self.lock:
            self.asleep = {"weights", "kv_cache"}
            self.model.kv_cache = None
            if level == 2:
                self.model.weights = None

    def wake_up(self, tags: Iterable[str]) -> None:
        """Takes back what `tags` names. Weights that level 2 gave up come back with reload_weights."""
        wanted = set(tags)
        unknown = wanted - {"weights", "kv_cache"}
        if unknown:
            raise RequestError(
                "unknown tag {}; the tags are weights and kv_cache".format(", ".join(sorted(unknown))), param="tags"
            )
        with self.lock:
            if "kv_cache" in wanted and self.model.kv_cache is None:
                if self.model.weights is None:
                    raise RequestError(
                        "the weights were given up by sleep level 2; call reload_weights first", status=409
                    )
                self.model.allocate_kv_cache()
            self.asleep -= wanted

    def reload_weights(self) -> None:
        """Reads the weights again after sleep level 2."""
        with self.lock:
            if self.model.weights is None:
                self.model.load()


class Completion:
    """A validated request to /v1/completions."""

    def __init__(self, body: Any, model_name: str) -> None:
        if not isinstance(body, dict):
            raise RequestError("the body must be a JSON object")
        asked = body.get("model", model_name)
        if asked != model_name:
            raise RequestError(
                f"the model `{asked}` does not exist; this server has `{model_name}`", 404, "model", "NotFoundError"
            )
        prompt = body.get("prompt")
        if not isinstance(prompt, str):
            raise RequestError("prompt must be a string", param="prompt")
        self.prompt = prompt
        self.max_tokens = body.get("max_tokens", 16)
        if type(self.max_tokens) is not int or not 1 <= self.max_tokens <= MAX_TOKENS_LIMIT:
            raise RequestError(f"max_tokens must be an integer from 1 to {MAX_TOKENS_LIMIT}", param="max_tokens")
        self.temperature = body.get("temperature", 1.0)
        if type(self.temperature) not in (int, float) or not 0 <= self.temperature <= 2:
            raise RequestError("temperature must be a number from 0 to 2", param="temperature")
        self.seed = body.get("seed")
        if self.seed is not None and type(self.seed) is not int:
            raise RequestError("seed must be an integer", param="seed")
        self.stream = body.get("stream", False)
        if not isinstance(self.stream, bool):
            raise RequestError("stream must be true or false", param="stream")

    def salt(self, draw: Callable[[int], bytes]) -> bytes:
        """Nothing at temperature 0; else the seed, or chance."""
        if self.temperature == 0:
            return b""
        return draw(16) if self.seed is None else str(self.seed).encode("ascii")


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "gpuckpt-reference/1"
    timeout = IDLE_CONNECTION_S
    disable_nagle_algorithm = True
    engine: Engine  # serve() sets it

    def do_GET(self) -> None:
        self._dispatch(
            {
                "/health": self._health,
                "/v1/models": self._models,
                "/metrics": self._metrics,
                "/is_sleeping": self._is_sleeping,
                "/debug/digest": self._digest,
            }
        )

    def do_POST(self) -> None:
        self._dispatch(
            {
                "/v1/completions": self._completions,
                "/sleep": self._sleep,
                "/wake_up": self._wake_up,
                "/collective_rpc": self._collective_rpc,
                "/reseed": self._reseed,
            }
        )

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: a checkpointed process must not hold a growing file."""

    def _dispatch(self, routes: dict[str, Callable[[], None]]) -> None:
        address = urllib.parse.urlsplit(self.path)
        self.query = urllib.parse.parse_qs(address.query)
        self.body_bytes = b""
        try:
            self._read_body()
            route = routes.get(address.path)
            if route is None:
                raise RequestError(
                    f"{self.command} {address.path} is not served here", status=404, kind="NotFoundError"
                )
            route()
        except RequestError as error:
            self._send_json(error.body, error.status)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _read_body(self) -> None:
        try:
            length = int(self.headers.get("Content-Length", 0))
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_BODY_BYTES:
            self.close_connection = True
            raise RequestError(f"Content-Length must be from 0 to {MAX_BODY_BYTES}")
        self.body_bytes = self.rfile.read(length)

    def _json_body(self) -> Any:
        try:
            return json.loads(self.body_bytes)
        except ValueError as error:
            raise RequestError(f"the body is not valid JSON: {error}") from None

    def _require_ready(self) -> None:
        if not self.engine.ready.is_set():
            raise RequestError("the model is still loading", status=503, kind="service_unavailable")

    def _require_awake(self) -> None:
        self._require_ready()
        if self.engine.asleep or self.engine.model.weights is None:
            raise RequestError(
                "the server sleeps; POST /wake_up (after sleep level 2 reload_weights too) first",
                status=503,
                kind="service_unavailable",
            )

    def _send(self, payload: bytes, content_type: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _send_json(self, value: dict[str, Any], status: int = 200) -> None:
        self._send(json.dumps(value).encode("utf-8"), "application/json", status)

    def _health(self) -> None:
        self._require_ready()
        self._send(b"", "text/plain")

    def _models(self) -> None:
        entry = {
            "id": self.engine.model_name,
            "object": "model",
            "created": self.engine.started_at,
            "owned_by": "gpuckpt",
        }
        self._send_json({"object": "list", "data": [entry]})

    def _metrics(self) -> None:
        lines = []
        for name, value, text in (
            ("gpuckpt_requests_total", self.engine.requests_total, "Completions finished since the process started."),
            ("gpuckpt_tokens_total", self.engine.tokens_total, "Tokens generated since the process started."),
        ):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} counter", f"{name} {value}"]
        self._send(("\n".join(lines) + "\n").encode("ascii"), "text/plain; version=0.0.4")

    def _is_sleeping(self) -> None:
        self._send_json({"is_sleeping": bool(self.engine.asleep)})

    def _digest(self) -> None:
        self._require_awake()
        actual = self.engine.model.digest()
        self._send_json(
            {
                "sha256": actual,
                "expected": self.engine.model.expected_digest,
                "equal": actual == self.engine.model.expected_digest,
                "kv_cache": self.engine.model.kv_cache_digest(),
            }
        )

    def _sleep(self) -> None:
        self._require_ready()
        level = self.query.get("level", ["1"])[0]
        self.engine.sleep(int(level) if level.isdigit() else None)
        self._send(b"", "text/plain")

    def _wake_up(self) -> None:
        self._require_ready()
        self.engine.wake_up(self.query.get("tags", ["weights", "kv_cache"]))
        self._send(b"", "text/plain")

    def _collective_rpc(self) -> None:
        self._require_ready()
        body = self._json_body()
        method = body.get("method") if isinstance(body, dict) else None
        if method != "reload_weights":
            raise RequestError("method must be reload_weights", param="method")
        self.engine.reload_weights()
        self._send_json({"results": [None]})

    def _reseed(self) -> None:
        self._require_ready()
        self.engine.reseed()
        self._send(b"", "text/plain")

    def _completions(self) -> None:
        self._require_awake()
        request = Completion(self._json_body(), self.engine.model_name)
        identity = "cmpl-" + self.engine.draw(8).hex()
        tokens = self.engine.model.tokens(request.prompt, request.max_tokens, request.salt(self.engine.draw))
        if request.stream:
            self._stream(identity, tokens, request.max_tokens)
        else:
            self._answer(identity, tokens, request)

    def _chunk(self, identity: str, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {
            "id": identity,
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.engine.model_name,
            "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}],
        }

    def _answer(self, identity: str, tokens: Iterable[str], request: Completion) -> None:
        answer = self._chunk(identity, "".join(tokens), "length")
        prompt_tokens = len(request.prompt.split())
        answer["usage"] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": request.max_tokens,
            "total_tokens": prompt_tokens + request.max_tokens,
        }
        self.engine.count(request.max_tokens)
        self._send_json(answer)

    def _stream(self, identity: str, tokens: Iterable[str], count: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for position, text in enumerate(tokens, start=1):
            last = position == count
            if last:
                self.engine.count(count)
            self._event(json.dumps(self._chunk(identity, text, "length" if last else None)))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str) -> None:
        payload = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(payload), payload))


class Server(http.server.ThreadingHTTPServer):
    """Listens before the weights are loaded, so that /health can say 503."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[Handler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse ends the process with a message when it is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="weights file; its sha256 lies next to it in FILE.sha256"
    )
    parser.add_argument(
        "--make-weights", type=int, metavar="MIB", help="write FILE with so many MiB of seeded random bytes, and end"
    )
    parser.add_argument("--seed", type=int, default=WEIGHTS_SEED, help="seed for --make-weights (default %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=18080, help="port to listen on (default %(default)s)")
    parser.add_argument(
        "--model", default="gpuckpt-reference", help="model name in the interface (default %(default)s)"
    )
    parser.add_argument(
        "--kv-mib", type=int, default=16, help="size of the stand-in for a KV cache, in MiB (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.make_weights is not None and options.make_weights < 1:
        parser.error("--make-weights needs at least 1 MiB")
    if options.kv_mib < 0:
        parser.error("--kv-mib cannot be negative")
    return options


def serve(options: argparse.Namespace) -> int:
    """Listens, load, serve until SIGTERM. Returns the exit status."""
    Handler.engine = Engine(Model(options.weights, options.kv_mib), options.model)
    host = options.host.strip("[]")
    place = f"[{host}]:{options.port}" if ":" in host else f"{host}:{options.port}"
    try:
        server = Server((host, options.port), Handler)
    except OSError as error:
        print(f"cannot listen on {place}: {error.strerror}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    listener = threading.Thread(target=server.serve_forever, daemon=True)
    listener.start()
    try:
        Handler.engine.start()
    except (OSError, ValueError) as error:
        print(f"cannot load the model: {error}", file=sys.stderr)
        return 1
    print(f"ready on http://{place}", file=sys.stderr, flush=True)
    listener.join()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit status."""
    options = parse_arguments(arguments)
    if options.make_weights is not None:
        print(make_weights(options.weights, options.make_weights, options.seed))
        return 0
    return serve(options)


if __name__ == "__main__":
    sys.exit(main())
