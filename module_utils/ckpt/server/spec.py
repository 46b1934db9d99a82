# SPDX-License-Identifier: GPL-3.0-or-later
"""The server under test, as a ckpt_* module is told about it: checked at once, every error named."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import CkptError
from ..parsing import FormatError, convert, require_document
from ..vocabulary import RUNTIME_TRAITS, SLIMMINGS, RuntimeTraits
from .engines import ENGINES, Engine

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
ENV_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
CAPABILITY = re.compile(r"(?:cap_)?([a-z_]+)", re.IGNORECASE)
ALL_CAPABILITIES = "all"
# what stands in the address of a request
HOST = re.compile(r"[a-zA-Z0-9.-]+|\[[0-9a-fA-F:.]+\]|(?=[^\[\]]*:)[0-9a-fA-F:.]+")
PATH = re.compile(r"/(?!/)[!-~]*")
# a part of a host's name, which no resolver takes if it is longer
LABEL_LENGTH = 63


@dataclass(frozen=True)
class Canary:
    """The request whose answer must be the same before and after."""

    prompt: str = "The quick brown fox"
    max_tokens: int = 16
    temperature: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A request of a server that does not speak OpenAI's protocol, and the field of its answer that must stay the same.

    In texts of ``body``, ``{prompt}`` stands for the canary's prompt; a text ``{max_tokens}`` for that number.
    ``field`` is the way to the field through a JSON document, such as ``choices.0.text``.
    """

    path: str
    body: Any
    field: str


@dataclass(frozen=True)
class ServerSpec:
    """An inference server: how it is started and how it is spoken to. Times in seconds."""

    name: str
    kind: str
    command: list[str]
    model: str
    port: int
    host: str = "127.0.0.1"
    health_path: str = "/health"
    completions_path: str = "/v1/completions"
    counter_path: str = "/metrics"
    counter_metric: str = ""
    health_timeout_s: float = 300.0
    env: dict[str, str] = field(default_factory=dict)
    env_secret_file: str | None = None
    cwd: str = "/"
    stdout: str | None = None
    image: str | None = None
    # a folder that is a container's root instead of an image; it may be read-only
    rootfs: str | None = None
    podman_args: list[str] = field(default_factory=list)
    privileged: bool = False
    # what the server keeps of root's rights; none of them is needed to be checkpointed and restored
    capabilities: list[str] = field(default_factory=list)
    # whether others than this node may reach the development interface
    expose_development: bool = False
    gpu: bool = False
    # whether its processes on several GPUs are taken to share memory there, and the slimming modes that end that
    shares_gpu_memory: bool = True
    unshared_by: list[str] = field(default_factory=list)
    canary: Canary = field(default_factory=Canary)
    # asked in place of a streamed completion
    question: Question | None = None
    # slimming mode → "before" and "after" → requests (path, JSON body or None)
    sleep: dict[str, dict[str, list[tuple[str, Any]]]] = field(default_factory=dict)
    # requests after a restore that is served from: what must differ between servers restored from one checkpoint
    unique: list[tuple[str, Any]] = field(default_factory=list)
    # where slimming `staged` leaves the weights, and the program that brings such a file to the GPU during a restore
    staging_dir: str | None = None
    prefetch: list[str] = field(default_factory=list)

    def shares_while(self, slimming: str) -> bool:
        """Whether its processes are taken to share GPU memory while it is slimmed like that."""
        return self.shares_gpu_memory and slimming not in self.unshared_by

    @property
    def engine(self) -> Engine:
        """What all servers of its kind have in common."""
        return ENGINES[self.kind]

    @property
    def base_url(self) -> str:
        """Where the server listens; an IPv6 address stands in brackets there."""
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("[") else self.host
        return f"http://{host}:{self.port}"

    def load_prompt(self, number: int, max_tokens: int | None) -> Canary:
        """One of several requests at a time: each has a prompt of its own, the same at every call.

        :param number: which of them
        :param max_tokens: tokens of the answer; those of the canary if it is None
        """
        return replace(
            self.canary,
            prompt=f"{self.canary.prompt} {number}",
            max_tokens=self.canary.max_tokens if max_tokens is None else max_tokens,
            extra={**self.canary.extra, **self.engine.load_extra},
        )

    @property
    def sleep_paths(self) -> list[str]:
        """Where the requests of all slimming modes go."""
        return [path for steps in self.sleep.values() for requests in steps.values() for path, _ in requests]


REQUIRED = ("name", "kind", "command", "model", "port")
OPTIONAL = {
    "host": str,
    "health_path": str,
    "completions_path": str,
    "counter_path": str,
    "counter_metric": str,
    "cwd": str,
    "stdout": str,
    "image": str,
    "rootfs": str,
    "env_secret_file": str,
    "staging_dir": str,
}
OTHERS = (
    "health_timeout_s",
    "env",
    "podman_args",
    "privileged",
    "capabilities",
    "expose_development",
    "gpu",
    "shares_gpu_memory",
    "unshared_by",
    "canary",
    "question",
    "sleep",
    "unique",
    "prefetch",
)
KNOWN = {*REQUIRED, *OPTIONAL, *OTHERS}


def parse_server(raw: Mapping[str, Any], runtime: str | None) -> ServerSpec:
    """The specification of a server. Raises CkptError (bad_input) that names every wrong key.

    :param runtime: which one is to start it; None where nothing but its name and its port is needed any more.
    """
    traits = RuntimeTraits() if runtime is None else RUNTIME_TRAITS[runtime]
    try:
        require_document(raw)
    except FormatError as error:
        raise CkptError("bad_input", f"the server's description {error}.") from None
    errors = [f"server.{key!s:.40} is not known" for key in raw if key not in KNOWN]
    errors += [f"server.{key} is missing" for key in REQUIRED if not raw.get(key)]
    values = {key: raw[key] for key in (*REQUIRED, *OPTIONAL) if raw.get(key) is not None}
    texts = (*OPTIONAL, "name", "kind", "model")
    errors += [f"server.{key} must be a string" for key in texts if not isinstance(values.get(key, ""), str)]
    errors += _identity_errors(values)
    errors += _root_errors(values, runtime, traits)
    values["port"] = _number(values, "port", int, 1, 65535, errors)
    values["health_timeout_s"] = _number(raw, "health_timeout_s", float, 0.1, 86400, errors, 300.0)
    values["command"] = _strings(raw, "command", errors)
    values["podman_args"] = _strings(raw, "podman_args", errors)
    values["prefetch"] = _strings(raw, "prefetch", errors)
    values["unshared_by"] = _modes(_strings(raw, "unshared_by", errors), errors)
    values["env"] = _environment(raw.get("env") or {}, traits, errors)
    values["capabilities"] = _capabilities(_strings(raw, "capabilities", errors), errors)
    values["expose_development"] = _boolean(raw, "expose_development", errors)
    values["privileged"] = _boolean(raw, "privileged", errors)
    values["gpu"] = _boolean(raw, "gpu", errors)
    values["shares_gpu_memory"] = _boolean(raw, "shares_gpu_memory", errors, default=True)
    values["sleep"] = _sleep(raw.get("sleep") or {}, errors)
    values["unique"] = _unique(raw.get("unique") or [], errors)
    engine = ENGINES.get(str(raw.get("kind")), Engine())
    values["canary"] = _canary(raw.get("canary") or {}, engine, errors)
    values["question"] = _question(raw.get("question"), errors)
    errors += _exposure_errors(values, engine)
    if errors:
        raise CkptError("bad_input", f"the server's description is wrong: {'; '.join(errors)}.")
    values.setdefault("counter_metric", engine.counter_metric)
    return ServerSpec(**values)


def _identity_errors(values: Mapping[str, Any]) -> list[str]:
    errors = []
    if values.get("kind") and str(values["kind"]) not in ENGINES:
        errors.append(f"server.kind must be one of {', '.join(ENGINES)}")
    if values.get("name") and not NAME.fullmatch(str(values["name"])):
        errors.append("server.name must be letters, digits, `_`, `.` or `-`")
    if "host" in values and not _is_host(str(values["host"])):
        errors.append("server.host must be a host's name or address")
    for key in ("health_path", "completions_path", "counter_path"):
        if key in values and not PATH.fullmatch(str(values[key])):
            errors.append(f"server.{key} must be the path of an address, such as {getattr(ServerSpec, key)}")
    for key in ("cwd", "stdout", "env_secret_file", "rootfs", "staging_dir"):
        if values.get(key) and not str(values[key]).startswith("/"):
            errors.append(f"server.{key} must be an absolute path")
    return errors


def _is_host(text: str) -> bool:
    """Whether a request can have it: an address, or a name whose parts have a length that names may have."""
    if not HOST.fullmatch(text):
        return False
    if ":" in text or not text.strip("0123456789."):
        return _address(text) is not None
    return all(0 < len(part) <= LABEL_LENGTH for part in text.removesuffix(".").split("."))


def _root_errors(values: Mapping[str, Any], runtime: str | None, traits: RuntimeTraits) -> list[str]:
    errors = []
    if traits.in_container and not (values.get("image") or values.get("rootfs")):
        errors.append(f"server.image is missing (the runtime {runtime} needs it, or server.rootfs)")
    if values.get("image") and values.get("rootfs"):
        errors.append("server.image and server.rootfs exclude each other")
    return errors


def _number(
    raw: Mapping[str, Any], key: str, kind: type, low: float, high: float, errors: list[str], default: float = 0
) -> Any:
    value = raw.get(key)
    if value is None:
        return default
    try:
        number = _as_number(value, kind)
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high:
        errors.append(f"server.{key} must be a number from {low:g} to {high:g}")
    return number


def _as_number(value: Any, kind: type) -> Any:
    """A number, or text that spells one. Raises TypeError or ValueError for all else."""
    if isinstance(value, bool) or (kind is int and isinstance(value, float) and not value.is_integer()):
        raise TypeError
    return kind(value)


def _strings(raw: Mapping[str, Any], key: str, errors: list[str]) -> list[str]:
    value = raw.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, (str, int, float)) for item in value):
        errors.append(f"server.{key} must be a list of strings")
        return []
    return [str(item) for item in value]


def _boolean(raw: Mapping[str, Any], key: str, errors: list[str], default: bool = False) -> bool:
    value = raw.get(key, default)
    if not isinstance(value, bool):
        errors.append(f"server.{key} must be true or false")
    return bool(value)


def _environment(value: Any, traits: RuntimeTraits, errors: list[str]) -> dict[str, str]:
    """The environment; an error names a variable and never tells its value."""
    if not isinstance(value, Mapping):
        errors.append("server.env must be a dictionary")
        return {}
    environment = {str(key): str(item) for key, item in value.items()}
    for key, item in environment.items():
        if not ENV_NAME.fullmatch(key):
            errors.append(f"server.env: {key!r:.40} is no name of a variable: letters, digits and `_`")
        if traits.in_container and len(item.splitlines()) > 1:
            errors.append(f"server.env.{key} must be one line (a container takes a line for each variable)")
    return environment


def _capabilities(names: list[str], errors: list[str]) -> list[str]:
    """Names as podman and setpriv take them, without CAP_ and in small letters."""
    matches = [CAPABILITY.fullmatch(name) for name in names]
    errors += [
        f"server.capabilities has {name!r}, which is no name of a capability (such as net_bind_service, or all)"
        for name, match in zip(names, matches, strict=True)
        if match is None
    ]
    return [match[1].lower() for match in matches if match is not None]


def _modes(names: list[str], errors: list[str]) -> list[str]:
    unknown = [name for name in names if name not in SLIMMINGS]
    if unknown:
        errors.append(f"server.unshared_by has {', '.join(unknown)}; the slimming modes are {', '.join(SLIMMINGS)}")
    return names


def _exposure_errors(values: Mapping[str, Any], engine: Engine) -> list[str]:
    """The development interface has no authentication: unless the user allows more, it listens on loopback only."""
    switch = engine.develops_with
    develops = engine.develops or (switch is not None and values["env"].get(switch, "0").strip() not in ("", "0"))
    outside = [host for host in _listens_on(values) if not _is_loopback(host)]
    if not develops or not outside or values["expose_development"]:
        return []
    off = f", switch it off (server.env.{switch}: '0')" if switch else ""
    return [
        f"server.host is {outside[0]}, where others than this node reach the server's development interface, which asks for no "
        f"password (/sleep, /wake_up, /collective_rpc, /debug): keep 127.0.0.1{off}, or set server.expose_development: true"
    ]


def _listens_on(values: Mapping[str, Any]) -> list[str]:
    """The address of the description, and those that the command names."""
    command = values["command"]
    after = [command[place + 1] for place, word in enumerate(command[:-1]) if word == "--host"]
    joined = [word.partition("=")[2] for word in command if word.startswith("--host=")]
    return [str(values.get("host", ServerSpec.host)), *after, *joined]


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(host: str) -> Any:
    """The address that it spells, None if it is a name."""
    # not at the top: clients wait for what is imported
    import ipaddress

    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _canary(value: Any, engine: Engine, errors: list[str]) -> Canary:
    known = {"prompt", "max_tokens", "temperature", "extra"}
    if not isinstance(value, Mapping) or set(value) - known:
        errors.append(f"server.canary must be a dictionary of {', '.join(sorted(known))}")
        return Canary()
    try:
        return Canary(
            prompt=str(value.get("prompt", Canary.prompt)),
            max_tokens=_as_number(value.get("max_tokens", Canary.max_tokens), int),
            temperature=_as_number(value.get("temperature", Canary.temperature), float),
            extra=convert(value.get("extra") or engine.canary_extra, dict[str, Any], "extra"),
        )
    except (TypeError, ValueError):
        errors.append("server.canary has a value of the wrong type")
        return Canary()


def _question(value: Any, errors: list[str]) -> Question | None:
    if value is None:
        return None
    keys = {"path", "body", "field"}
    if not isinstance(value, Mapping) or set(value) != keys:
        errors.append("server.question must have path, body and field, and nothing else")
        return None
    path, body, way = str(value["path"]), value["body"], str(value["field"])
    if not PATH.fullmatch(path):
        errors.append("server.question.path must be the path of an address, such as /v1/embeddings")
    if not isinstance(body, (Mapping, list)):
        errors.append("server.question.body must be the request as a dictionary or a list")
    if not all(way.split(".")):
        errors.append("server.question.field must be a way through the answer, such as choices.0.text")
    return Question(path, body, way)


def _sleep(value: Any, errors: list[str]) -> dict[str, dict[str, list[tuple[str, Any]]]]:
    try:
        modes = convert(value, dict[str, dict[str, list[list[Any]]]], "sleep")
        return {
            mode: {when: [_request(*step) for step in steps[when]] for when in ("before", "after")}
            for mode, steps in modes.items()
        }
    except (KeyError, TypeError, ValueError):
        errors.append("server.sleep must map a slimming mode to `before` and `after`, each a list of [path, body]")
        return {}


def _unique(value: Any, errors: list[str]) -> list[tuple[str, Any]]:
    try:
        return [_request(*step) for step in convert(value, list[list[Any]], "unique")]
    except (TypeError, ValueError):
        errors.append("server.unique must be a list of [path, body]")
        return []


def _request(path: Any, body: Any) -> tuple[str, Any]:
    if not PATH.fullmatch(convert(path, str, "path")):
        raise ValueError("no path of an address")
    return path, body
