# SPDX-License-Identifier: GPL-3.0-or-later
"""What a restore depends on: a checkpoint that was made under another identity is not restored.

Everything is read from files in milliseconds, since a start from the checkpoint asks for it each time. Programs, scripts
and models are known by size and time of their files, as make and rsync know them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from ..criu.choice import parse_criu
from ..node.gpu import driver
from ..node.inspection import Node
from ..vocabulary import RUNTIME_TRAITS
from .wanted import Wanted

GPU_INFORMATION = "/proc/driver/nvidia/gpus/*/information"
# files of a model's folder that are looked at, and no more: a folder named by mistake may be a file system
MOST_FILES = 1000
Identity = dict[str, Any]


def of(wanted: Wanted, node: Node | None = None) -> Identity:
    """Returns the identity of a server on this node: kernel, processor, GPUs, CRIU, the server's own description and files."""
    node = node or Node()
    criu = parse_criu(wanted.criu)
    description = criu.files.read_description() or {}
    image = wanted.server.get("image")
    return {
        "kernel": node.read("/proc/sys/kernel/osrelease"),
        "processor": _processor(node),
        "driver": (driver(node) or {}).get("version"),
        "gpus": _gpus(node),
        "criu": description.get("digest"),
        "switches": criu.effective_switches(),
        "programs": {name: _stamp(node, node.which(name)) for name in _programs(wanted)},
        "image": _image(node, image) if image and RUNTIME_TRAITS[wanted.runtime].in_container else None,
        "server": digest(wanted.server),
        "slimming": wanted.slimming,
        "runtime": wanted.runtime,
        # images in place are the rule, and older checkpoints do not say so
        **({} if wanted.source == "disk" else {"source": wanted.source}),
        "files": {path: stamp for path in _paths(wanted.server) if (stamp := _stamp(node, path))},
    }


def digest(value: Any) -> str:
    """Returns a short name for a JSON value; equal values have equal names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def differences(made: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns in words how two identities differ; empty if a checkpoint made under the one fits the other."""
    found = []
    for key in sorted({*made, *now}):
        before, after = made.get(key), now.get(key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            found += [f"{key}: {text}" for text in differences(before, after)]
        else:
            found.append(f"{key} was {_words(before)}, is {_words(after)}")
    return found


def _words(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _image(node: Node, image: str) -> str | None:
    # not at the top: only containers need it, and clients wait for what is imported
    from ..measure import provenance

    return provenance.image_digest(node, image)


def _processor(node: Node) -> dict[str, Any]:
    """Model and features: a program that has chosen its instructions by them does not ask again."""
    info = node.read("/proc/cpuinfo") or ""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.M)
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.M)
    return {
        "model": model[1] if model else None,
        "features": digest(sorted(flags[1].split())) if flags else None,
    }


def _gpus(node: Node) -> list[str]:
    """The model of each GPU."""
    texts = (node.read(path) or "" for path in node.glob(GPU_INFORMATION))
    models = (re.search(r"^Model:\s*(.+)$", text, re.M) for text in texts)
    return sorted(match[1] for match in models if match)


def _programs(wanted: Wanted) -> tuple[str, ...]:
    return ("podman", "runc", "crun", "conmon") if RUNTIME_TRAITS[wanted.runtime].in_container else ()


def _paths(server: Mapping[str, Any]) -> Iterator[str]:
    """Paths that the server's command and its PYTHONPATH name."""
    for word in server.get("command") or []:
        path = str(word).rpartition("=")[2]
        if path.startswith("/"):
            yield path
    yield from (
        path for path in str((server.get("env") or {}).get("PYTHONPATH", "")).split(":") if path.startswith("/")
    )


def _stamp(node: Node, path: str | None) -> str | None:
    """Size and time of a file, or the same of the files in a folder; None where there is nothing."""
    if path is None or not node.exists(path):
        return None
    real = os.path.realpath(node.path(path))
    if os.path.isfile(real):
        return _describe(os.stat(real))
    if not os.path.isdir(real):
        return None
    entries = sorted(os.scandir(real), key=lambda entry: entry.name)[:MOST_FILES]
    return digest([[entry.name, _describe_entry(entry)] for entry in entries if entry.name != "__pycache__"])


def _describe_entry(entry: os.DirEntry[str]) -> str:
    """A folder is known by its name alone: it changes whenever Python compiles a module there.

    The version of a package is in the name of another folder next to it.
    """
    if entry.is_dir():
        return "a folder"
    return _describe(entry.stat()) if os.path.exists(entry.path) else "a link that leads nowhere"


def _describe(status: os.stat_result) -> str:
    when = datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds")
    return f"{status.st_size} bytes of {when}"
